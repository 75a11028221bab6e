"""A lock file for an output path: two writers never mix, and a writer that died does not stay in the way."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from atomsieve.errors import AtomSieveError


def _started(pid: int) -> str | None:
    """Return the kernel's start time of a process, which tells it from a later one of the same number.

    None if it is gone, or dead and not yet buried: in a container nobody may ever wait for it.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else fields[18]


def _boot() -> str:
    """Return the name of this boot of this machine and of its process namespace: within one, pids can be compared."""
    words = [socket.gethostname()]
    with suppress(OSError):
        words.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        words.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(words)


class PathLock:
    """Context manager that holds `<path>.lock` beside an output.

    Raises
    ------
    AtomSieveError
        if a living process of this machine, or any process of another one, holds it.
    """

    def __init__(self, path: Path) -> None:
        self.target = path
        self.path = path.with_name(f"{path.name}.lock")
        self._text = ""

    def __enter__(self) -> PathLock:
        pid = os.getpid()
        holder = {"host": socket.gethostname(), "boot": _boot(), "pid": pid, "started": _started(pid)}
        self._text = json.dumps({**holder, "since": time.strftime("%Y-%m-%d %H:%M:%S"), "nonce": os.urandom(8).hex()})
        for _ in range(3):
            try:
                descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                self._judge()
                continue
            except OSError as error:
                raise AtomSieveError(f"cannot write {self.path}: {error.strerror}") from error
            try:
                with os.fdopen(descriptor, "w") as file:
                    file.write(self._text)
            except OSError as error:
                self.path.unlink(missing_ok=True)
                raise AtomSieveError(f"cannot write {self.path}: {error.strerror}") from error
            return self
        raise AtomSieveError(f"{self.target}: several writers want this path at once; try again")

    def _judge(self) -> None:
        """Remove the lock of a dead process, or say who holds it."""
        try:
            text = self.path.read_text()
        except FileNotFoundError:
            return
        try:
            holder: dict[str, Any] = json.loads(text)
            alive = holder["boot"] != _boot() or _started(int(holder["pid"])) == holder["started"]
        except (ValueError, KeyError, TypeError):
            holder, alive = {}, time.time() - self.path.stat().st_mtime < 10  # half written, or a writer died there
        if alive:
            raise AtomSieveError(
                f"{self.target} is being written by another process (host {holder.get('host', '?')}, process "
                f"{holder.get('pid', '?')}, since {holder.get('since', '?')}); wait for it, or if it is gone remove "
                f"{self.path}"
            )
        aside = self.path.with_name(f"{self.path.name}.{os.urandom(4).hex()}")
        with suppress(FileNotFoundError):
            self.path.rename(aside)
            if aside.read_text() != text:  # another writer was faster and this is its live lock: give it back
                with suppress(FileExistsError):
                    os.link(aside, self.path)
            aside.unlink()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(FileNotFoundError):
            if self.path.read_text() == self._text:
                self.path.unlink()
