"""What can be examined besides a function of the user's own."""
