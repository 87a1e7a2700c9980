"""NaN, infinity and data types inside of a forward pass."""
