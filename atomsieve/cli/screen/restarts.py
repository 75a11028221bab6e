"""Options of `screen run` for failures and restarts, and the start of its supervisor."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from atomsieve.cli.groups import given_options

FAULTS = "Faults"


@dataclass(frozen=True)
class FaultOptions:
    """Restarts after a death, the end by a signal, and rows that kill their process."""

    max_restarts: Annotated[
        int,
        typer.Option(
            "--max-restarts",
            min=0,
            rich_help_panel=FAULTS,
            help="Start the run again after it died, at most so many times.",
        ),
    ] = 0
    launcher: Annotated[
        str | None,
        typer.Option(
            "--launcher",
            rich_help_panel=FAULTS,
            show_default=False,
            help="Start it by this command each time, e.g. 'mpirun -n 64'.",
        ),
    ] = None
    grace: Annotated[
        float,
        typer.Option(
            "--grace",
            min=0.0,
            rich_help_panel=FAULTS,
            help="Seconds that SIGTERM leaves for the chunk at hand; after them the run leaves after the batch.",
        ),
    ] = 60.0
    retry_poisoned: Annotated[
        bool,
        typer.Option("--retry-poisoned", rich_help_panel=FAULTS, help="Compute chunks with POISONED rows once more."),
    ] = False


OF_SUPERVISOR = ("max_restarts", "launcher")
"""Options for the supervisor alone, which the runs that it starts do not get."""


def format_arguments(ctx: Any, without: tuple[str, ...] = ()) -> list[str]:
    """Return the arguments of the command line of a call, but for the parameters `without`; defaults are left out."""
    given, arguments = given_options(ctx), list[str]()
    for parameter in ctx.command.params:
        name, value = parameter.name, ctx.params.get(parameter.name)
        if name not in given or name in without:
            continue
        if parameter.param_type_name == "argument":
            arguments.append(str(value))
        elif getattr(parameter, "is_flag", False):
            arguments.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        else:
            for one in value if isinstance(value, list | tuple) else [value]:
                arguments.append(f"{parameter.opts[0]}={one}")  # a value may begin with a dash
    return arguments


def run_under_supervisor(ctx: typer.Context) -> int | None:
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
    from atomsieve.runs.launcher import detect_launcher
    from atomsieve.screen.restart import Supervisor, parse_launcher
    from atomsieve.screen.results.files import ResultsFolder
    from atomsieve.screen.setup import default_out

    if str(given["candidates"]) == "-":
        raise UsageError(
            "standard input (-) can be read once, not again at a restart; write the structures to a file, or leave out "
            "--max-restarts and --launcher"
        )
    if detect_launcher(os.environ).at_least > 1:
        raise UsageError(
            "--max-restarts and --launcher are for the process that starts the ranks; give the launcher to it: "
            "screen run --launcher 'mpirun -n 4' --max-restarts 3 ..."
        )
    command = [] if given["launcher"] is None else parse_launcher(given["launcher"])
    debug = ["--debug"] if logging.getLogger("atomsieve").level == logging.DEBUG else []
    command += [sys.executable, "-P", "-m", "atomsieve", "screen", "run", *debug, *format_arguments(ctx, OF_SUPERVISOR)]
    out = given["out"] or default_out(Path(given["candidates"]))
    return Supervisor(command, ResultsFolder(Path(out)), given["max_restarts"], console(stderr=True))()
