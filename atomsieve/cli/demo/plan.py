"""The plan of a demo, its folder, and how it runs commands as a user would type them."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from atomsieve.errors import EXIT_INTERRUPTED, EXIT_SOME_FAILED, AtomSieveError, Interrupted

if TYPE_CHECKING:
    from rich.console import Console

MEMBERS = 4
"""Networks in the demo's ensemble."""


@dataclass(frozen=True)
class DemoPlan:
    """Sizes of a demo.

    Attributes
    ----------
    seed : seed of everything random.
    candidates : crystals to screen.
    groups : groups of labelled structures per source (see `atomsieve.cli.demo.labels`).
    epochs : passes over the labels in training.
    hidden, layers, cutoff : size of the networks; the cutoff in Angstrom.
    """

    seed: int
    candidates: int
    groups: dict[str, int]
    epochs: float
    hidden: int
    layers: int
    cutoff: float


def full_plan(seed: int, candidates: int) -> DemoPlan:
    """Return the plan of the demo: about 2,500 labels per source and a few minutes in all on two cores."""
    return DemoPlan(seed, candidates, {"gfn2_xtb": 256, "emt": 640}, 20, 32, 2, 4.5)


def quick_plan(seed: int, candidates: int) -> DemoPlan:
    """Return the plan of `--quick`: a quarter of the labels and of the training."""
    return DemoPlan(seed, candidates, {"gfn2_xtb": 60, "emt": 150}, 20, 32, 2, 4.5)


@dataclass(frozen=True)
class Demo:
    """A demo under way: its folder, plan, ranks, the console it talks to, and the options that it was called with."""

    out: Path
    plan: DemoPlan
    ranks: int
    console: Console
    options: tuple[str, ...] = ()

    @property
    def gfm(self) -> Path:
        """The ensemble folder."""
        return self.out / "gfm"

    @property
    def training(self) -> Path:
        """Checkpoints, logs, metrics and plots of training."""
        return self.out / "training"

    @property
    def results(self) -> Path:
        """The screening results."""
        return self.out / "results"

    @property
    def candidates(self) -> Path:
        """The structures to screen."""
        return self.out / "candidates.bp"

    def labels_file(self, source: str) -> Path:
        """Return the extxyz file with the labels of a source."""
        return self.out / "labels" / f"{source}.extxyz"

    def dataset(self, part: str) -> Path:
        """Return the dataset folder of the labels: `part` is train or test."""
        return self.out / f"labelled-{part}.bp"

    # -- commands ------------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Print a line, whole even where paths are long."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def show_command(self, *words: str) -> None:
        """Print a command as a user would type it."""
        self.console.print(f"$ {shlex.join(words)}", style="bold cyan", highlight=False, markup=False, soft_wrap=True)

    def command(self, *words: str | Path, ranks: int = 1) -> None:
        """Print a command as a user would type it, and run it.

        Raises
        ------
        Interrupted
            if it was, or this process is.
        AtomSieveError
            if it fails; its own message is above.
        """
        typed = [str(w) for w in words]
        program = _find_program(typed[0])
        mpirun = find_mpirun() if ranks > 1 else None
        if ranks > 1 and mpirun is None:
            self.say("no mpirun at hand: one process (pip install 'atomsieve\\[mpi]' brings one)")
        if mpirun is not None:
            typed = ["mpirun", "-n", str(ranks), *typed]
            program = [mpirun, "-n", str(ranks), *program]
        self.show_command(*typed)
        code = _run([*program, *[str(w) for w in words[1:]]], _environment(self.console))
        if code in (EXIT_INTERRUPTED, -signal.SIGINT, 128 + signal.SIGINT):
            raise Interrupted("the demo stopped; run the same command again to go on where it was")
        if code not in (0, EXIT_SOME_FAILED):
            raise AtomSieveError(f"`{shlex.join(typed)}` ended with exit code {code}; what it said is above")


def _find_program(name: str) -> list[str]:
    """Return how to start `atomsieve` or `screen` with this very interpreter."""
    beside = Path(sys.executable).with_name(name)
    if beside.exists():
        return [str(beside)]
    return [sys.executable, "-m", "atomsieve", *(["screen"] if name == "screen" else [])]


def find_mpirun() -> str | None:
    """Return the mpirun of this environment, which fits its MPI library, or else one on the path."""
    beside = Path(sys.executable).with_name("mpirun")
    return str(beside) if beside.exists() else shutil.which("mpirun")


def _environment(console: Console) -> dict[str, str]:
    """Return the user's environment; under mpirun, which is no terminal itself, a live bar needs to be asked for."""
    from atomsieve.runs.environment import restore_user_environment

    environment = restore_user_environment(dict(os.environ))
    if console.is_terminal:
        environment |= {"TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1", "COLUMNS": str(console.width)}
    return environment


def _run(program: list[str], environment: dict[str, str]) -> int:
    """Run a program to its end and return its exit code; a signal to us is passed on and the program waited for."""
    with subprocess.Popen(program, env=environment) as child:

        def forward(number: int, frame: FrameType | None) -> None:
            child.send_signal(signal.SIGINT)

        # Ctrl-C reaches the child from the terminal; it needs time to make its work safe.
        before = {
            signal.SIGTERM: signal.signal(signal.SIGTERM, forward),
            signal.SIGINT: signal.getsignal(signal.SIGINT),
        }
        signal.signal(signal.SIGINT, _ignore_signal)
        try:
            return child.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _ignore_signal(number: int, frame: FrameType | None) -> None:
    """Do nothing: not SIG_IGN, which the child would inherit."""


@contextmanager
def progress_bar(console: Console, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar; yields the function that moves it on by so many."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total)
        yield lambda n: progress.advance(task, n)
