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

    from atomsieve.runs.mpi import connect_ranks
    from atomsieve.screen.node_local.collect import collect

    comm = connect_ranks()
    report = collect(sys.argv[2], f"{sys.argv[1]}{comm.rank}", comm)
    if report.rank == 0:
        print(f"{report.now.chunks} chunks from {report.now.places} nodes, {report.durable} of {report.count}")


if __name__ == "__main__":
    main()
