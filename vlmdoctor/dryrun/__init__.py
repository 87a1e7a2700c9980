"""Running a model of any size, forward and backward, without its weights.

The contract: inside `Abstract`, whatever depends on a weight is abstract (a shape, a dtype and strides on the
meta device), while what depends on the batch alone (token ids, masks, grids, positions, pixels before they
meet a weight) is real. So shapes that depend on token ids resolve as they would in a real run, and nothing
large is ever allocated. What depends on a value that nobody has (`.item()` or `nonzero` of an activation)
raises `ValueUnknown`, which names the operator. The one assumption about values: activations are finite.
"""
