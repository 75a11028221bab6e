"""`python -m atomsieve`: the same as the `atomsieve` command."""

import sys

from atomsieve.cli.launch import atomsieve

if __name__ == "__main__":
    sys.exit(atomsieve())
