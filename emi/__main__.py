"""`python -m emi` is the `emi` command."""

from emi.cli import main

main()
