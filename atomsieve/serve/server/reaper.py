"""Reaper of a server whose supervisor was killed: a small process that waits at a pipe, which the kernel closes.

Run as a script, `reaper.py PID [FOLDER...]`, with the pipe as its standard input. It imports nothing of this package,
so that it costs little. When the pipe ends without the word `done`, it ends the process group PID, stubs of models
included, and removes the shared memory that they leave, and the scratch folders.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time

SHM = "/dev/shm/"  # noqa: S108 - where the kernel puts shared memory
REGION = "triton_python_backend_shm_region_"
PATIENCE = 10.0  # seconds, for the leader to end and then for the rest to be gone


def list_processes(group: int) -> list[int]:
    """Return the processes of a group."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                fields = _stat(int(name))
                if int(fields[2]) == group and fields[0] not in "ZX":
                    found.append(int(name))
    return found


def list_regions(pids: list[int]) -> set[str]:
    """Return the regions of shared memory, by path, that a server's processes have mapped."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps") as maps:
            found |= {line.split()[5] for line in maps if SHM + REGION in line}
    return found


def remove_regions(paths: set[str]) -> None:
    """Remove regions that nothing alive has mapped."""
    if not paths:
        return
    used = list_regions([int(name) for name in os.listdir("/proc") if name.isdigit()])
    for path in paths - used:
        with contextlib.suppress(OSError):
            os.unlink(path)


def end_group(group: int) -> None:
    """Ask the leader of a group to end, kill the rest of the group, and remove its shared memory."""
    paths = list_regions(list_processes(group))
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(group, signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE
    while group in list_processes(group) and time.monotonic() < deadline:
        time.sleep(0.1)
    paths |= list_regions(list_processes(group))
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
    while list_processes(group) and time.monotonic() < deadline + PATIENCE:
        time.sleep(0.05)
    remove_regions(paths)


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()


def main() -> None:
    """Wait for the pipe to end."""
    group = int(sys.argv[1])
    try:
        born = _stat(group)[19]
    except OSError:
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.stdin.read().strip() == "done":
        return
    try:
        same = _stat(group)[19] == born
    except OSError:  # the leader has ended; processes that it started may not have
        same = bool(list_processes(group))
    if same:
        end_group(group)
    for folder in sys.argv[2:]:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
