"""Print constraints.txt: the versions, in the environment that runs this, of all that the package and its extras need.

    .venv/bin/python containers/steps/constraints.py > containers/constraints.txt

Local parts of versions (torch 2.13.0+cpu) are left out, so that other builds of the same version fit too.
"""

import platform
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from requirements import requirements

EXTRAS = ["mpi", "export", "data", "demo", "train", "pyg", "uncertainty", "serve", "torchsim", "cuda"]
TOOLS = ["setuptools", "wheel"]
"""What builds the wheel; it is pinned too."""


def closure(roots: list[str]) -> tuple[dict[str, str], set[str]]:
    """Return versions by name of what the requirements need, directly or not, and the names of what is not here."""
    found: dict[str, str] = {}
    missing: set[str] = set()
    waiting = [Requirement(text) for text in roots]
    seen = set()
    while waiting:
        needed = waiting.pop()
        key = (name := canonicalize_name(needed.name), frozenset(needed.extras))
        if key in seen or (needed.marker and not needed.marker.evaluate()):
            continue
        seen.add(key)
        try:
            here = distribution(name)
        except PackageNotFoundError:
            missing.add(name)
            continue
        found[name] = Version(here.version).public
        for text in here.requires or []:
            further = Requirement(text)
            environments = [{"extra": extra} for extra in ("", *needed.extras)]
            if further.marker is None or any(further.marker.evaluate(e) for e in environments):
                further.marker = None
                waiting.append(further)
    return found, missing


def main() -> None:
    """Print the file."""
    pyproject = Path(__file__).resolve().parents[2] / "pyproject.toml"
    found, missing = closure([*requirements(pyproject, EXTRAS), *TOOLS])
    python = platform.python_version()
    print(f"# Versions that the tests passed with (Python {python}, {sys.platform}, {platform.machine()}).")
    print("# Made by containers/steps/constraints.py; torch pins the CUDA libraries of its own builds itself.")
    for name, version in sorted(found.items()):
        print(f"{name}=={version}")
    if missing:
        print(f"not installed here, so not pinned: {', '.join(sorted(missing))}", file=sys.stderr)


if __name__ == "__main__":
    main()
