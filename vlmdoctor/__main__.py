"""`python -m vlmdoctor` is `vlmdoctor`."""

from vlmdoctor.cli.main import run

run()
