"""`screen collect` as a program for tests under mpirun, where each rank has a folder of its own as if on a node.

mpirun -n 2 python collect_fakes.py NODE OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.screen.screen_fakes import without_torch


def main() -> None:
    without_torch()

    from atomsieve.runs.mpi import connect
    from atomsieve.screen.node_local.collect import collect

    team = connect()
    report = collect(sys.argv[2], f"{sys.argv[1]}{team.rank}", team)
    if report.rank == 0:
        print(f"{report.now.chunks} chunks from {report.now.places} nodes, {report.durable} of {report.count}")


if __name__ == "__main__":
    main()
