"""The `atomsieve` and `screen` commands: verbs that load when called, and one place where every error ends."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import time
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command as command_of

from atomsieve.errors import EXIT_DONE, EXIT_ERROR, EXIT_INTERRUPTED, AtomSieveError, Interrupted

VERBS: dict[str, tuple[str, str]] = {
    "demo": ("atomsieve.cli.demo.run", "See it all work: labels, training, screening, a ranked list. No data needed."),
    "data": ("atomsieve.cli.data", "Convert, inspect, generate and export structures."),
    "train": ("atomsieve.cli.train", "Train an ensemble from a configuration file."),
    "export": (
        "atomsieve.cli.export",
        "Turn an ensemble into ONNX, TorchScript and .pt2, and check each against FP64.",
    ),
    "calibrate": ("atomsieve.cli.calibrate", "Fit the uncertainty of an ensemble to labelled structures kept apart."),
    "mixture": ("atomsieve.cli.mixture", "Learn which heads a composition belongs to, for `--head auto`."),
    "evaluate": (
        "atomsieve.cli.evaluate",
        "Errors and uncertainties of an ensemble on labelled structures: numbers, plots, a page.",
    ),
    "references": (
        "atomsieve.cli.references",
        "Compute the phases of a head from which formation energies and energies above the hull follow.",
    ),
    "serve": ("atomsieve.cli.serve", "Serve an ensemble with a Triton Inference Server; check an endpoint."),
    "properties": (
        "atomsieve.cli.properties",
        "Equation of state, elastic moduli and phonons of chosen structures, with the ensemble's spread.",
    ),
    "screen": ("atomsieve.cli.screen", "Screen candidates with an ensemble; also the command `screen`."),
}
"""Each verb: the module whose `app` it is (a Typer or a function), and its line in the help."""

EPILOG = (
    "Anywhere on the line: --debug shows what was set, log messages and tracebacks. Exit codes: 0 done, 1 error, "
    "2 usage, 3 finished but some structures failed, 75 interrupted (run it again to go on)."
)


def load_verb(name: str) -> Any:
    """Import the module of a verb and return its click command."""
    module, line = VERBS[name]
    app = importlib.import_module(module).app
    if not isinstance(app, typer.Typer):
        single = typer.Typer(add_completion=False)
        single.command(name, help=line)(app)
        app = single
    command = command_of(app)
    command.name = name
    command.context_settings.setdefault("help_option_names", ["-h", "--help"])
    return command


class VerbGroup(TyperGroup):
    """Lists verbs from `VERBS` without importing them; a verb's module is imported when the verb is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the called verb, loaded."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_verb(name) if name in VERBS else command, rest


def _version(value: bool) -> None:
    if value:
        from atomsieve.version import __version__

        typer.echo(f"atomsieve {__version__}")
        raise typer.Exit


def _atomsieve_command() -> Any:
    names = {"help_option_names": ["-h", "--help"]}
    app = typer.Typer(cls=VerbGroup, add_completion=False, epilog=EPILOG, context_settings=names)

    @app.callback()
    def atomsieve(
        version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
    ) -> None:
        """Train ensembles of graph foundation models of atoms; screen candidates with calibrated uncertainty."""

    def placeholder() -> None:
        """Hold the place of a verb in the help."""

    for name, (_, line) in VERBS.items():
        app.command(name, help=line)(placeholder)
    return command_of(app)


def _find_world() -> Any:
    """Return the world communicator if this process is one of several running MPI ranks, else None."""
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is None or not mpi.Is_initialized() or mpi.Is_finalized() or mpi.COMM_WORLD.size == 1:
        return None
    return mpi.COMM_WORLD


def _end_all_ranks(comm: Any, code: int, patience: float = 2.0) -> None:
    """Abort the job unless the other ranks fail as well: they would wait for this one for ever."""
    request = comm.Ibarrier()
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if request.Test():
            return
        time.sleep(0.02)
    comm.Abort(code)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _report(error: BaseException, debug: bool) -> tuple[int, str]:
    """Return the exit code and the line for the user."""
    if debug:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, Interrupted):
        return error.exit_code, f"interrupted: {_one_line(error)}"
    if isinstance(error, AtomSieveError):
        return error.exit_code, f"error: {_one_line(error)}"
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED, "interrupted: run the same command again to go on"
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # click's own: the call is wrong
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        return error.exit_code, f"error: {_one_line(error.format_message())}{hint}"
    kind = f"{type(error).__name__}: {_one_line(error)}".rstrip(": ")
    return EXIT_ERROR, f"internal error: {kind}" + ("" if debug else "; run with --debug to see where")


def _set_up_logging(debug: bool) -> None:
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s" if debug else "%(levelname)s: %(message)s")
    logging.getLogger("atomsieve").setLevel(logging.DEBUG if debug else logging.WARNING)


def _call(command: Any, program: str, args: list[str]) -> int:
    """Run a click command and return its exit code; errors pass through."""
    try:
        with command.make_context(program, args) as context:
            value = command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    return value if isinstance(value, int) and not isinstance(value, bool) else EXIT_DONE


def run(program: str, args: list[str] | None = None) -> int:
    """Run `atomsieve` or `screen` with `args` (default: the command line) and return the exit code.

    Every error ends here as one line on stderr; `--debug`, anywhere before `--`, adds the traceback.
    """
    args = list(sys.argv[1:] if args is None else args)
    options = args[: args.index("--")] if "--" in args else args
    debug = "--debug" in options
    args = [a for a in options if a != "--debug"] + args[len(options) :]
    _set_up_logging(debug)
    if debug:
        from atomsieve.runs.environment import format_environment

        print(format_environment(dict(os.environ)), file=sys.stderr)
    try:
        command = load_verb("screen") if program == "screen" else _atomsieve_command()
        if not args:
            args = ["--help"]
        code = _call(command, program, args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader of our output (`| head`) has closed the pipe; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except (Exception, KeyboardInterrupt) as error:
        code, line = _report(error, debug)
        comm = _find_world()
        print(line if comm is None else f"[rank {comm.rank}] {line}", file=sys.stderr, flush=True)
        if comm is not None:
            _end_all_ranks(comm, code)
        return code
