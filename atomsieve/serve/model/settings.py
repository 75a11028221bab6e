"""Settings of a served model: a strict JSON file in its version folder, written by `atomsieve serve repository`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from atomsieve.errors import AtomSieveError
from atomsieve.gfm.backends import BACKEND_CHOICES
from atomsieve.models.precision import PRECISIONS

SETTINGS_FILE = "settings.json"
GRAPH_FILE = "graph.json"
"""The settings file of a graph model."""
GFM = "gfm"
"""Name of the ensemble folder inside the version folder of a served model."""


def graph_model_name(model: str) -> str:
    """Return the name of the graph model that is served with a model for raw structures."""
    return f"{model}_graph"


def one_of(name: str, allowed: tuple[str, ...]) -> str:
    """Return `name`; raise ValueError, as pydantic wants it, if it is not allowed."""
    if name not in allowed:
        raise ValueError(f"must be one of {', '.join(allowed)}")
    return name


class Limits(BaseModel):
    """Limits of one request; more is refused with an error of the 400 class.

    Attributes
    ----------
    structures, atoms, edges (estimated) : in one request. bytes : of its tensors.
    structure_atoms : a structure above it gets the status TOO_LARGE, as one above `structure_edges` (estimated) does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    structures: int = Field(default=65_536, ge=1)
    atoms: int = Field(default=200_000, ge=1)
    edges: int = Field(default=50_000_000, ge=1)
    bytes: int = Field(default=64 * 2**20, ge=1024)
    structure_atoms: int = Field(default=20_000, ge=1)
    structure_edges: int = Field(default=5_000_000, ge=1)


class Settings(BaseModel):
    """How a model is served.

    Attributes
    ----------
    precision, backend, head : as of `Predictor.load`; head is the default one of requests, None for the folder's own.
    device : cpu, cuda (each instance on the GPU that the server gives it), or cuda:N.
    threads : CPU threads of an instance; None takes OMP_NUM_THREADS where it is set, else an equal share of the cores
        that the machine, or the quota of a container, gives the instances of the model.
    max_atoms, max_edges : budget of one evaluation (edges are estimated); None takes the device's default.
    limits : of a request.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    precision: str = "fp32"
    backend: str = "native"
    head: str | None = None
    device: str = "cpu"
    threads: int | None = Field(default=None, ge=1)
    max_atoms: int | None = Field(default=None, ge=1)
    max_edges: int | None = Field(default=None, ge=1)
    limits: Limits = Limits()

    @field_validator("precision")
    @classmethod
    def _known_precision(cls, name: str) -> str:
        return one_of(name, PRECISIONS)

    @field_validator("backend")
    @classmethod
    def _known_backend(cls, name: str) -> str:
        return one_of(name, BACKEND_CHOICES)

    @staticmethod
    def read(folder: Path, file: str = SETTINGS_FILE) -> Settings:
        """Read the settings of the version folder of a served model.

        Raises
        ------
        AtomSieveError
            if the file is missing or not valid.
        """
        path = folder / file
        try:
            return Settings.model_validate_json(path.read_text())
        except OSError as error:
            raise AtomSieveError(f"{path}: {error.strerror}; write it with atomsieve serve repository") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "file"
            raise AtomSieveError(f"{path}: {where}: {first['msg']}, got {first['input']!r}") from error
