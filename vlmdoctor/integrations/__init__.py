"""What other libraries' objects mean to the doctor; none of the libraries is imported before it is used."""
