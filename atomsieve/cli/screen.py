"""`screen` (also `atomsieve screen`): rank candidates with an ensemble, ask the results, go on with the best."""

from __future__ import annotations

import typer

from atomsieve.cli.screen_collect import collect
from atomsieve.cli.screen_dedup import dedup
from atomsieve.cli.screen_hull import hull
from atomsieve.cli.screen_relax import relax
from atomsieve.cli.screen_results import export, pick, status, top
from atomsieve.cli.screen_run import run

app = typer.Typer(
    help="Screen candidates with an ensemble, alone or under mpirun; then ask how far it is, for the best rows, or for "
    "the rows in another format.",
    no_args_is_help=True,
    add_completion=False,
)
for verb in (run, status, top, pick, export, collect, relax, dedup, hull):
    app.command(verb.__name__)(verb)
