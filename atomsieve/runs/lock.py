"""A lock file: one run at a time writes an output, and a run that died does not block the next one.

The lock holds host, process and start time of its holder, which renews the file's time every 15 seconds.
"""

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


def _read_start_time(pid: int) -> str | None:
    """Return the start time of a process in the kernel's ticks, None if it has ended or is a zombie."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else fields[18]


def _name_machine() -> str:
    """Name this boot of this machine and its process namespace: within one, process ids can be compared."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _parse(text: str) -> dict[str, Any]:
    """Return the content of a lock file or of its draft; empty if it is incomplete."""
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError:
        return {}
    return found


def _is_dead(holder: dict[str, Any], silent: float) -> bool:
    """Return True if the holder of a lock has ended; `silent` are the seconds since its last sign of life."""
    if holder.get("machine") == _name_machine():
        return _read_start_time(int(holder["pid"])) != holder["process_start"]
    return silent > SILENCE


class PathLock:
    """Context manager that holds the lock file `path` while a run writes `target`; rank 0 holds it for all ranks.

    The lock of a dead process of this machine is replaced at once, that of another host after two minutes without a
    sign of life.

    Raises
    ------
    AtomSieveError
        if another run holds it (the message names host, process and start time), or the lock cannot be written.
    """

    def __init__(self, path: Path, target: Path | None = None) -> None:
        self.path = path
        self.target = path.parent if target is None else target
        self.lost = False
        self._token = ""
        self._end = threading.Event()
        self._beat = threading.Thread(target=self._send_signs, name="lock", daemon=True)

    def __enter__(self) -> PathLock:
        mine = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": _name_machine(),
            "process_start": _read_start_time(os.getpid()),
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
        """Link the draft into place, which fails if a lock is there; so a half-written lock is never read."""
        for _ in range(3):
            try:
                os.link(draft, self.path)
                return
            except FileExistsError:
                self._remove_dead_lock(draft)
        raise AtomSieveError(f"{self.target}: several runs want this place at once; try again")

    def _sweep(self, draft: Path) -> None:
        """Remove drafts of starts that were killed while they took the lock."""
        now = draft.stat().st_mtime
        for other in self.path.parent.glob(f"{glob.escape(self.path.name)}.*"):
            with suppress(FileNotFoundError):
                if _is_dead(_parse(other.read_text()), now - other.stat().st_mtime):
                    other.unlink()

    def _remove_dead_lock(self, draft: Path) -> None:
        """Remove the lock of a run that has ended; raise if its holder is alive."""
        try:
            text = self.path.read_text()
            silent = draft.stat().st_mtime - self.path.stat().st_mtime  # both times are of the file system's clock
        except FileNotFoundError:
            return
        holder = _parse(text)
        if not _is_dead(holder, silent):
            raise AtomSieveError(
                f"{self.target} is in use by another run (host {holder.get('host', '?')}, process "
                f"{holder.get('pid', '?')}, since {holder.get('since', '?')}, last sign of life {max(silent, 0):.0f} s "
                f"ago); wait for it, stop it, or choose another output (the lock of a dead run is void after "
                f"{SILENCE:.0f} s)"
            )
        aside = draft.with_name(f"{draft.name}.stale")
        with suppress(FileNotFoundError):
            os.rename(self.path, aside)
            if aside.read_text() != text:  # another run was faster, and this is its live lock: put it back
                with suppress(FileExistsError):
                    os.link(aside, self.path)
            aside.unlink()

    def _send_signs(self) -> None:
        """Renew the time of the lock file until the end, or until another run has taken the lock."""
        while not self._end.wait(BEAT):
            if not self._is_mine():
                self.lost = True
                return
            with suppress(OSError):
                os.utime(self.path)

    def _is_mine(self) -> bool:
        try:
            return self.path.read_text() == self._token
        except FileNotFoundError:
            return False
        except OSError:
            return True  # an error of the file system does not mean that another run took the lock

    def check(self) -> None:
        """Raise if the output is gone, or if another run took the lock, as it may after 120 silent seconds."""
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
        if self._is_mine():
            self.path.unlink()


def read_holder(path: Path) -> dict[str, Any] | None:
    """Return the content of the lock `path` (host, pid, since), None if there is none or its process here has ended."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if found.get("machine") == _name_machine() and _read_start_time(int(found["pid"])) != found["process_start"]:
        return None
    return found
