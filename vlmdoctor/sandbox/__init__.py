"""Running the user's model and leaving no trace: weights, gradients, random states and hooks stay."""
