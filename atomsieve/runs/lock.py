"""A lock file for an output: one run at a time writes it, and a run that died does not stay in the way."""

from __future__ import annotations

import glob
import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from atomsieve.errors import AtomSieveError

BEAT = 15.0  # seconds between signs of life
SILENCE = 120.0  # seconds without one after which a run on another host counts as dead


def _start_of(pid: int) -> str | None:
    """Return the start time of a process as the kernel counts it, None if it is gone or dead and not yet buried."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else fields[18]


def _machine() -> str:
    """Name this boot of this machine and its process namespace: within one, process ids can be compared."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _parsed(text: str) -> dict[str, Any]:
    """Return what a lock or a draft of one says, nothing if it is not whole."""
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError:
        return {}
    return found


def _dead(holder: dict[str, Any], silent: float) -> bool:
    """Tell whether who wrote a lock is gone; `silent` are the seconds since its last sign of life."""
    if holder.get("machine") == _machine():
        return _start_of(int(holder["pid"])) != holder["process_start"]
    return silent > SILENCE


class PathLock:
    """Context manager that holds the lock file `path` while a run writes `target`; one process holds it for its team.

    A lock left behind by a dead process of this machine is taken over at once; one of another host after two minutes
    without a sign of life.

    Raises
    ------
    AtomSieveError
        if another run holds it (host, process and since when are named), or the lock cannot be written.
    """

    def __init__(self, path: Path, target: Path | None = None) -> None:
        self.path = path
        self.target = path.parent if target is None else target
        self.lost = False
        self._token = ""
        self._end = threading.Event()
        self._beat = threading.Thread(target=self._keep, name="lock", daemon=True)

    def __enter__(self) -> PathLock:
        mine = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": _machine(),
            "process_start": _start_of(os.getpid()),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            "nonce": os.urandom(8).hex(),
        }
        self._token = json.dumps(mine)
        draft = self.path.with_name(f"{self.path.name}.{mine['nonce']}")
        try:
            draft.write_text(self._token)
            self._take(draft)
            self._sweep(draft)
        except OSError as error:
            raise AtomSieveError(
                f"cannot write {self.path}: {error.strerror}; make room there, or choose another place"
            ) from error
        finally:
            draft.unlink(missing_ok=True)
        self._beat.start()
        return self

    def _take(self, draft: Path) -> None:
        """Link the draft into place, which fails if a lock is there, so a lock is never seen half written."""
        for _ in range(3):
            try:
                os.link(draft, self.path)
                return
            except FileExistsError:
                self._judge(draft)
        raise AtomSieveError(f"{self.target}: several runs want this place at once; try again")

    def _sweep(self, draft: Path) -> None:
        """Remove drafts of starts that were killed while they took the lock."""
        now = draft.stat().st_mtime
        for other in self.path.parent.glob(f"{glob.escape(self.path.name)}.*"):
            with suppress(FileNotFoundError):
                if _dead(_parsed(other.read_text()), now - other.stat().st_mtime):
                    other.unlink()

    def _judge(self, draft: Path) -> None:
        """Remove a dead run's lock, or say who holds it."""
        try:
            text = self.path.read_text()
            silent = draft.stat().st_mtime - self.path.stat().st_mtime  # both by the file system's clock
        except FileNotFoundError:
            return
        holder = _parsed(text)
        if not _dead(holder, silent):
            raise AtomSieveError(
                f"{self.target} is in use by another run (host {holder.get('host', '?')}, process "
                f"{holder.get('pid', '?')}, since {holder.get('since', '?')}, last sign of life {max(silent, 0):.0f} s "
                f"ago); wait for it, stop it, or choose another output (the lock of a dead run is void after "
                f"{SILENCE:.0f} s)"
            )
        aside = draft.with_name(f"{draft.name}.stale")
        with suppress(FileNotFoundError):
            os.rename(self.path, aside)
            if aside.read_text() != text:  # another run was faster and this is its live lock: give it back
                with suppress(FileExistsError):
                    os.link(aside, self.path)
            aside.unlink()

    def _keep(self) -> None:
        while not self._end.wait(BEAT):
            if not self._mine():
                self.lost = True
                return
            with suppress(OSError):
                os.utime(self.path)

    def _mine(self) -> bool:
        try:
            return self.path.read_text() == self._token
        except FileNotFoundError:
            return False
        except OSError:
            return True  # a file system that stutters is not a thief

    def check(self) -> None:
        """Raise if another run took the output over, as it may after two silent minutes, or if the output is gone."""
        if self.lost and not self.path.parent.is_dir():
            raise AtomSieveError(
                f"{self.target} is gone (moved or deleted while it was written); put it back and run the same command "
                "again to continue"
            )
        if self.lost:
            raise AtomSieveError(f"{self.target}: another run took this folder over; this one stops")

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        if self._beat.is_alive():
            self._beat.join()
        if self._mine():
            self.path.unlink()


def holder(path: Path) -> dict[str, Any] | None:
    """Return who holds the lock `path`, for display, or None if nobody living on this machine does."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if found.get("machine") == _machine() and _start_of(int(found["pid"])) != found["process_start"]:
        return None
    return found
