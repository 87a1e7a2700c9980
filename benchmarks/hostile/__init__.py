"""What vlmdoctor must withstand: hostile input by class, and states that it must leave as they were."""
