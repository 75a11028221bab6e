"""`atomsieve data convert` with small pieces, for tests of its processes: PROGRAM FILES_PER_PIECE PAUSE ARGUMENTS...

PAUSE are seconds between two pieces that this process converts itself.
"""

from __future__ import annotations

import sys
import time

from atomsieve.cli.main import run
from atomsieve.structures.conversion import convert, plan

if __name__ == "__main__":
    plan.FILES_PER_PIECE, pause = int(sys.argv[1]), float(sys.argv[2])
    convert_one = convert._convert_one

    def convert_slowly(*arguments) -> None:
        convert_one(*arguments)
        time.sleep(pause)

    convert._convert_one = convert_slowly
    sys.exit(run("atomsieve", ["data", "convert", *sys.argv[3:]]))
