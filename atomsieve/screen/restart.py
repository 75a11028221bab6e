"""`--max-restarts`: a process that starts a run, passes signals on to it, and starts it again when it dies.

A rank that dies ends its MPI job, and durable chunks stay. The same command continues the run, so this process only has
to distinguish a death, after which it starts the command again, from an end that the run itself has explained, after
which it does not.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from atomsieve.errors import (
    EXIT_DONE,
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_SOME_FAILED,
    EXIT_USAGE,
    AtomSieveError,
    UsageError,
)
from atomsieve.runs.events import EventLog
from atomsieve.runs.lock import SILENCE, read_holder
from atomsieve.runs.signals import STOP_SIGNALS, end_with_parent
from atomsieve.screen.results.files import ResultsFolder
from atomsieve.text import format_duration

if TYPE_CHECKING:
    from rich.console import Console

FINISHED = (EXIT_DONE, EXIT_SOME_FAILED)
EXPLAINED = (EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED)
ONCE = "--overwrite"
"""The option that only a first start gets: a second one continues what the first has begun."""
LONGEST_PAUSE = 60.0
MOMENT = 0.05  # seconds between looks at a clock


def parse_launcher(launcher: str) -> list[str]:
    """Return the words of a launcher such as `mpirun -n 64`, its program found.

    A program that is not on the PATH is taken from the folder of this Python, where `pip install mpich` puts it.

    Raises
    ------
    UsageError
        if the text is no command, or there is no such program.
    """
    try:
        words = shlex.split(launcher)
    except ValueError as error:
        raise UsageError(f"--launcher {launcher!r}: {error}") from error
    if not words:
        raise UsageError("--launcher is empty; give a command such as 'mpirun -n 4'")
    bundled = Path(sys.executable).parent / words[0]
    found = shutil.which(words[0]) or (str(bundled) if os.access(bundled, os.X_OK) else None)
    if found is None:
        raise UsageError(f"--launcher {launcher!r}: there is no program {words[0]!r} on the PATH or beside this Python")
    return [found, *words[1:]]


def find_cause_of_death(code: int, complete: bool) -> str | None:
    """Return in words how a run died, None if it ended by itself.

    code : of the process; negative for a signal, as `subprocess` has it.
    complete : every row is there. Without it even 0 is a death: launchers do not all pass on that a rank was killed.
    """
    if code in FINISHED:
        return None if complete else f"exit code {code} without complete results"
    if code in EXPLAINED:
        return None
    number = -code if code < 0 else code - 128 if code > 128 else None
    if number is not None and number in set(signal.Signals):
        return f"killed by {signal.Signals(number).name}"
    return f"exit code {code}"


def exit_code(code: int) -> int:
    """Return the exit code of this process for that of its child; a signal gives 128 and its number, as in a shell."""
    return 128 - code if code < 0 else code


@dataclass
class Supervisor:
    """Starts `command` until it ends by itself, or has died `restarts` + 1 times.

    Attributes
    ----------
    command : the run; it gets `--overwrite` only until the first start has begun its results.
    folder : where its results go.
    restarts : how often it is started again.
    console : where restarts are printed.
    pause : seconds before a restart; doubled for each death in a row that brought nothing durable.
    """

    command: list[str]
    folder: ResultsFolder
    restarts: int
    console: Console | None = None
    pause: float = 1.0

    def __post_init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped: int | None = None  # the signal that came

    def __call__(self) -> int:
        """Return the exit code: the run's own, or 75 if a signal ended it."""
        before = {number: signal.signal(number, self._forward) for number in STOP_SIGNALS}
        try:
            return self._supervise()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _supervise(self) -> int:
        began, durable, pause = _stamp(self.folder.run), _ledger_bytes(self.folder), self.pause
        for start in range(self.restarts + 1):
            overwritten = _stamp(self.folder.run) != began
            since = time.monotonic()
            code = self._run([word for word in self.command if word != ONCE or not overwritten])
            # without a new record, the one in the folder is of an earlier run
            rewritten = ONCE not in self.command or _stamp(self.folder.run) != began
            cause = find_cause_of_death(code, rewritten and self._complete())
            if cause is None:
                if code in (EXIT_ERROR, EXIT_USAGE):  # a launcher may end so without a word
                    self._print(f"the run ended by itself with exit code {code}; it is not started again")
                return exit_code(code)
            if self._stopped is not None:
                return EXIT_INTERRUPTED
            now = _ledger_bytes(self.folder)
            pause = self.pause if now > durable else min(2 * pause, LONGEST_PAUSE)
            durable = now
            lived = format_duration(time.monotonic() - since)
            if start == self.restarts:
                break
            self._say(
                f"the run died ({cause}) after {lived}; restart {start + 1} of {self.restarts}",
                restart=start + 1,
                cause=cause,
            )
            self._wait(pause)
            if self._stopped is not None:
                return EXIT_INTERRUPTED
        times = "once" if self.restarts == 0 else f"{self.restarts + 1} times"
        self._say(
            f"the run died {times}, at last after {lived} ({cause}); what was computed is safe in "
            f"{self.folder.path}, run the same command again to continue",
            cause=cause,
        )
        return exit_code(code) if code not in FINISHED else EXIT_ERROR

    def _run(self, command: list[str]) -> int:
        """Run the command once. It runs in a new session: a Ctrl-C at the terminal reaches it once, through here."""
        own = os.getpid()

        def follow_me() -> None:
            end_with_parent(own, signal.SIGTERM)

        # preexec_fn is safe only without other threads; there are none here
        self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=follow_me)
        try:
            if self._stopped is not None:  # it came while the child was made
                self._child.send_signal(self._stopped)
            return self._child.wait()
        finally:
            self._child = None

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self._stopped = number
        if self._child is not None:
            self._child.send_signal(number)

    def _complete(self) -> bool:
        return self.folder.rows.is_file() and self.folder.top.is_file()

    def _wait(self, seconds: float) -> None:
        """Wait before a restart, and for as long as the lock of the run that died may still hold."""
        until = time.monotonic() + seconds
        silent_at = time.monotonic() + SILENCE
        while self._stopped is None:
            now = time.monotonic()
            held = now < silent_at and read_holder(self.folder.lock) is not None
            if now >= until and not held:
                return
            time.sleep(MOMENT)

    def _say(self, text: str, **facts: Any) -> None:
        self._print(text)
        if self.folder.is_ours():
            with suppress(OSError, AtomSieveError):  # the folder may be what was lost, or its disk full
                EventLog(self.folder.log)("died", **facts)

    def _print(self, text: str) -> None:
        if self.console is not None:
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return inode and time of change of a file, which a new version changes; None if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _ledger_bytes(folder: ResultsFolder) -> int:
    """Return the size of the ledger: it grows with every chunk that is durable."""
    return sum(path.stat().st_size for path in _files(folder.ledger))


def _files(folder: Path) -> Iterable[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder) if entry.is_file()]
    except OSError:
        return []
