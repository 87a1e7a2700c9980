"""One rule, one file, in the folder of its area; a file that is here is found."""
