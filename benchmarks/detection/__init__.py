"""How much the doctor finds, and how often it is wrong: faults planted in many models, and healthy models."""
