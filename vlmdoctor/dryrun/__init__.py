"""Running a model of any size, forward and backward, without its weights.

The contract: inside `Abstract`, floating-point tensors that come from weights or pixels are abstract (a
shape, a dtype and strides on the meta device), while integers and booleans (token ids, masks, grids,
positions), and small floats computed from them alone, are real. So shapes that depend on token ids resolve as they
would in a real run, and nothing large is ever allocated. What depends on a value that nobody has (`.item()` of an
activation, `nonzero` of one) raises `ValueUnknown`, which names the operator; nothing is guessed.
"""
