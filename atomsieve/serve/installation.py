"""The tritonserver of this machine: where it is, and which backends it brings."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from atomsieve.errors import AtomSieveError

WHEEL = "nvidia-pytriton==0.7.0"
"""A wheel that carries tritonserver 2.51.0; it is used for its binary alone, so its own dependencies are not wanted."""


NVIDIA_IMAGE = Path("/opt/tritonserver")


@dataclass(frozen=True)
class Installation:
    """A tritonserver. binary : the program. backends : folder of backends. libraries : folders with its libraries."""

    binary: Path
    backends: Path
    libraries: tuple[Path, ...] = ()

    def has_backend(self, name: str) -> bool:
        """Return whether it has a backend, e.g. `onnxruntime` or `pytorch`."""
        return (self.backends / name).is_dir()


def find_server(program: Path | None = None) -> Installation:
    """Return the tritonserver to use: the given one, NVIDIA's image, one on the PATH, or that of the wheel.

    Raises
    ------
    AtomSieveError
        if there is none.
    """
    found = program or (NVIDIA_IMAGE / "bin/tritonserver" if NVIDIA_IMAGE.is_dir() else None)
    if found is None and (on_path := shutil.which("tritonserver")) is not None:
        found = Path(on_path)
    if found is not None:
        if not os.access(found, os.X_OK) or not found.is_file():
            raise AtomSieveError(f"{found} is not a program; name a tritonserver with --tritonserver")
        home = found.resolve().parent.parent
        if not (home / "backends").is_dir():
            raise AtomSieveError(
                f"{found} is no tritonserver (there is no folder {home / 'backends'}); name one with --tritonserver"
            )
        return Installation(found, home / "backends", (home / "lib",))
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise AtomSieveError(
            "no tritonserver on this machine; install the one in a wheel with: pip install --no-deps "
            f"{WHEEL} (a plain install would pull numpy below 2), or use an image of containers/"
        )
    package = Path(next(iter(spec.submodule_search_locations)))
    home = package / "tritonserver"
    return Installation(home / "bin/tritonserver", home / "backends", (package.parent / "nvidia_pytriton.libs",))


def assemble_backends(server: Installation, scratch: Path) -> Path:
    """Return a folder of backends whose Python backend has the stub of this Python; made in `scratch` if need be.

    Raises
    ------
    AtomSieveError
        if the server has no stub for this version of Python.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stubs = server.backends.parent / "python_backend_stubs"
    if not stubs.is_dir():  # NVIDIA's own layout, whose stub fits the Python that it brings
        return server.backends
    stub = stubs / version / "triton_python_backend_stub"
    if not stub.is_file():
        there = ", ".join(sorted(p.name for p in stubs.iterdir()))
        raise AtomSieveError(f"this tritonserver has no stub for Python {version}; allowed: {there}")
    target = scratch / "backends"
    for backend in server.backends.iterdir():
        shutil.copytree(backend, target / backend.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(stub, target / "python" / stub.name)
    return target
