"""What `check` must withstand: hostile input, and states that it must leave as they were."""
