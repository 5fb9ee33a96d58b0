"""`python -m llmsession` is the command `llmsession`."""

from llmsession.cli import main

main()
