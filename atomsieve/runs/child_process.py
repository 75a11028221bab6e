"""Helper processes of a rank: they import the modules of this process and ignore the signals of the job."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from atomsieve.runs.signals import block_signals


def start_module(module: str, *arguments: str, **more: Any) -> subprocess.Popen[bytes]:
    """Start `python -m module arguments`; `more` are arguments of `subprocess.Popen`.

    The new process finds modules where this one does, but not in the working directory, where a file of the user may
    have the name of a module.
    """
    command = [sys.executable, "-P", "-m", module, *arguments]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(place) for place in sys.path)}
    with block_signals():
        return subprocess.Popen(command, env=env, **more)
