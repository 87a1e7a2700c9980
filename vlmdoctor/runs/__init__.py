"""The run folder: one schema, one writer, one reader, and the pages and pictures made from it."""
