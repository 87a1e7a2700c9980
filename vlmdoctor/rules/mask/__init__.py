"""Rules on which tokens may see which."""
