"""Options of `screen run` for memory that does not suffice, and for who watches it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atomsieve.cli.common import IN_OUT, WORK

OversizedOption = Annotated[
    str,
    typer.Option(
        "--oversized",
        help="A structure too large for the GPU alone: cpu (compute it there) or mark (status OUT_OF_MEMORY).",
        rich_help_panel=WORK,
    ),
]

MetricsOption = Annotated[
    Path | None,
    typer.Option(
        "--metrics",
        help="File that tells how the run is doing, for Prometheus; with {rank} in its name one for each rank.",
        rich_help_panel=IN_OUT,
        show_default=False,
    ),
]
