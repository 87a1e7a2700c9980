"""From when on a run can be asked whether it uses its images."""

LONG = 500  # steps: using images is learned later than the language of the answers
NEARLY_DONE = 0.9  # of the planned steps
