"""Print constraints.txt: versions, in the current environment, of all dependencies of the package and its extras.

    .venv/bin/python containers/steps/constraints.py > containers/constraints.txt

The file omits local parts of versions (torch 2.13.0+cpu), so other builds of the same version fit too.
"""

import platform
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from requirements import requirements

EXTRAS = ["mpi", "export", "data", "demo", "train", "pyg", "uncertainty", "serve", "torchsim", "properties", "cuda"]
TOOLS = ["setuptools", "wheel"]
"""Tools that build the wheel; their versions are pinned too."""


def closure(roots: list[str]) -> tuple[dict[str, str], set[str]]:
    """Return versions by name of all direct and indirect requirements, and the names of those not installed."""
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
    """Print the lines of the file."""
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
