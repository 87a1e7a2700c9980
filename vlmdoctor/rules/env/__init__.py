"""Rules on the machine and its installation."""
