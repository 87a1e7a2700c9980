"""`python -m vlmdoctor` is `vlmdoctor`."""

import sys

# The current folder comes last, as the script of that name has it: a file of the user's that is called like a
# module that is needed here (`json.py`, `rich.py`) is not meant.
if not sys.flags.safe_path and len(sys.path) > 1:
    sys.path.append(sys.path.pop(0))

from vlmdoctor.cli.main import run

run()
