"""Console entry points: set the environment variables that must be there from the start, then run the commands.

`atomsieve.runs.environment` lists the variables and the reasons. The entry points start the same interpreter once more,
in the same process, with these variables. A value that the user has set is never changed.

Only `os` and `sys` are imported here, so that a command that is only asked for its help starts fast.
"""

from __future__ import annotations

import os
import sys

LIGHT = {"--help", "--version", "-h"}
"""Options of calls that compute nothing."""


def relaunch() -> None:
    """Start this interpreter again with the variables it lacks; return if none is lacking or it was done before."""
    if not sys.executable or LIGHT & set(sys.argv[1:]) or len(sys.argv) == 1:
        return
    from atomsieve.runs.environment import MARK, find_missing_variables

    environ = dict(os.environ)
    pid = environ.get(MARK, "").partition(":")[0]
    if pid == str(os.getpid()):
        return
    wanted = find_missing_variables(environ)
    if not wanted:
        return
    environ |= wanted
    environ[MARK] = f"{os.getpid()}:{','.join(sorted(wanted))}"
    sys.stdout.flush()
    sys.stderr.flush()
    # The same process goes on: descriptors such as the one named by PMI_FD stay open, and so does its process id.
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)  # noqa: S606


def atomsieve() -> int:
    """Run the `atomsieve` command."""
    relaunch()
    from atomsieve.cli.main import run

    return run("atomsieve")


def screen() -> int:
    """Run the `screen` command: `atomsieve screen` under the short name."""
    relaunch()
    from atomsieve.cli.main import run

    return run("screen")
