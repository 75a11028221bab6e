"""How a process of our own is started: with the modules of this one, and deaf to the signals of the job."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from atomsieve.runs.signals import unheard


def start(module: str, *arguments: str, **more: Any) -> subprocess.Popen[bytes]:
    """Start `python -m module`; `more` as of `subprocess.Popen`.

    It finds modules where this process does, and not in the working directory, where a file may have any name.
    """
    command = [sys.executable, "-P", "-m", module, *arguments]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(place) for place in sys.path)}
    with unheard():
        return subprocess.Popen(command, env=env, **more)
