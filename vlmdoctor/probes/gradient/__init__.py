"""Where gradients come from, where they are cut, and which weights take part."""
