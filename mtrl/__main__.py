"""`python -m mtrl`."""

from mtrl.cli import main

main()
