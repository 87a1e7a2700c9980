"""The way of images into a language model: inputs, layout, features, placement."""
