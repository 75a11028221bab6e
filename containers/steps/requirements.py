"""Print the requirements in pyproject.toml, one per line: requirements.py PYPROJECT EXTRA ..."""

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """Return the dependencies of the package and of its extras.

    Raises
    ------
    SystemExit
        if an extra does not exist.
    """
    project = tomllib.loads(pyproject.read_text())["project"]
    found = list(project["dependencies"])
    for extra in extras:
        if extra not in project["optional-dependencies"]:
            allowed = ", ".join(project["optional-dependencies"])
            raise SystemExit(f"error: {extra!r} is no extra of {project['name']}; allowed: {allowed}")
        found += project["optional-dependencies"][extra]
    return found


if __name__ == "__main__":
    print("\n".join(requirements(Path(sys.argv[1]), sys.argv[2:])))
