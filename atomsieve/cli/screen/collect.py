"""`screen collect`: copy results that an ended run left on node-local disks to the results folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atomsieve.cli.common import IN_OUT, ResultsArgument, console


def collect(
    results: ResultsArgument,
    local: Annotated[
        Path,
        typer.Option(
            "--local", help="Where the run kept its results on each node.", rich_help_panel=IN_OUT, show_default=False
        ),
    ],
) -> None:
    """Copy results that a run with --local left on its nodes to the results folder; a continued run does so itself.

    On several nodes: `mpirun --map-by ppr:1:node screen collect results/ --local DIR`.
    """
    from atomsieve.screen.node_local.collect import collect as bring

    report = bring(results, local)
    if report.rank:
        return
    now, left = report.now, report.count - report.durable
    nodes = f"{now.places:,} node{'s' if now.places != 1 else ''}"
    damaged = f"; {now.damaged:,} chunks there are damaged" if now.damaged else ""
    then = f"{left:,} are still to be computed" if left else "none is left to compute"
    console().print(
        f"{now.chunks:,} chunks ({now.structures:,} structures) brought to {results} from {nodes}{damaged}\n"
        f"{report.durable:,} of {report.count:,} chunks are there, {then}: run the same command of `screen run` again "
        f"to {'continue' if left else 'finish'}",
        highlight=False,
        soft_wrap=True,
    )
