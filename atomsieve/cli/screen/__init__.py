"""`screen` (also `atomsieve screen`): rank candidates with an ensemble, query the results, follow up the best rows.

A verb is one module of this folder, with a function of the same name, and one row of `VERBS`.
"""

from __future__ import annotations

import importlib

import typer

VERBS = ("run", "status", "top", "pick", "export", "collect", "relax", "dedup", "hull", "diff", "join")
"""The verbs, in the order of the help."""

app = typer.Typer(
    help="Screen candidates with an ensemble, alone or under mpirun; then ask how far it is, for the best rows, or for "
    "the rows in another format.",
    no_args_is_help=True,
    add_completion=False,
)
for verb in VERBS:
    app.command(verb)(getattr(importlib.import_module(f"{__name__}.{verb}"), verb))
