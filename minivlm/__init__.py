"""A small vision-language model and its trainer."""
