"""What was raised, and which line did it."""
