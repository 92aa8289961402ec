"""`python -m distmem`: the command line."""

from distmem.cli import main

main()
