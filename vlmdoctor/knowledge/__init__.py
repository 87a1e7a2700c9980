"""What is known beforehand: tables and pure parsers, which import neither torch nor evidence."""
