"""What a notebook shows: a watched run that is updated in place, and the progress of a check."""
