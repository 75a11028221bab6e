"""Options of `screen run` for what may go wrong, and the start of its supervisor."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

FAULTS = "Faults"

MaxRestartsOption = Annotated[
    int,
    typer.Option(
        "--max-restarts",
        min=0,
        rich_help_panel=FAULTS,
        help="Start the run again after it died, at most so many times.",
    ),
]

LauncherOption = Annotated[
    str | None,
    typer.Option(
        "--launcher",
        rich_help_panel=FAULTS,
        show_default=False,
        help="Start it by this command each time, e.g. 'mpirun -n 64'.",
    ),
]

GraceOption = Annotated[
    float,
    typer.Option(
        "--grace",
        min=0.0,
        rich_help_panel=FAULTS,
        help="Seconds that SIGTERM leaves for the chunk at hand; after them the run leaves after the batch.",
    ),
]

RetryPoisonedOption = Annotated[
    bool,
    typer.Option("--retry-poisoned", rich_help_panel=FAULTS, help="Compute chunks with POISONED rows once more."),
]

OF_SUPERVISOR = ("max_restarts", "launcher")


def words(ctx: Any, without: tuple[str, ...] = ()) -> list[str]:
    """Return the words of the command line of a call, but for the parameters `without`; defaults are left out."""
    said: list[str] = []
    for parameter in ctx.command.params:
        name, value = parameter.name, ctx.params.get(parameter.name)
        given = getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"
        if not given or name in without:
            continue
        if parameter.param_type_name == "argument":
            said.append(str(value))
        elif getattr(parameter, "is_flag", False):
            said.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        else:
            for one in value if isinstance(value, list | tuple) else [value]:
                said.append(f"{parameter.opts[0]}={one}")  # a value may begin with a dash
    return said


def supervised(ctx: typer.Context) -> int | None:
    """Run this call under a supervisor if it asks for one, and return its exit code; else return None.

    Raises
    ------
    UsageError
        if this process is a rank of a job: a supervisor starts the launcher, not the other way round.
    """
    given = ctx.params
    if not given["max_restarts"] and given["launcher"] is None:
        return None
    from atomsieve.cli.common import console
    from atomsieve.errors import UsageError
    from atomsieve.runs.mpi import launched
    from atomsieve.screen.restart import Supervisor, launched_by
    from atomsieve.screen.results.files import ResultsFolder
    from atomsieve.screen.setup import default_out

    if launched(os.environ)[1] > 1:
        raise UsageError(
            "--max-restarts and --launcher are for the process that starts the ranks; give the launcher to it: "
            "screen run --launcher 'mpirun -n 4' --max-restarts 3 ..."
        )
    command = [] if given["launcher"] is None else launched_by(given["launcher"])
    debug = ["--debug"] if logging.getLogger("atomsieve").level == logging.DEBUG else []
    command += [sys.executable, "-P", "-m", "atomsieve", "screen", "run", *debug, *words(ctx, OF_SUPERVISOR)]
    out = given["out"] or default_out(Path(given["candidates"]))
    return Supervisor(command, ResultsFolder(Path(out)), given["max_restarts"], console(stderr=True))()
