"""`manifest.json` of a gfm/ folder: its schema, how it is read, and the identities that follow from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from atomsieve.errors import AtomSieveError, DataError
from atomsieve.gfm.exports import ExportEntry
from atomsieve.models.config import HeadSpec, Kind, ModelConfig
from atomsieve.runs.hashing import hash_json

SCHEMA = "atomsieve-gfm"
SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
CARD = "README.md"
CALIBRATION = "calibration.json"
DOMAIN = "domain.safetensors"
MIXTURE = "mixture.safetensors"
FITTED = (CALIBRATION, DOMAIN, MIXTURE)
"""Files that are fitted to an ensemble afterwards: weights and exports do not depend on them."""
_LARGEST_MANIFEST = 256 << 20


class MemberEntry(BaseModel):
    """One member: its folder and the seed of its initial weights."""

    model_config = ConfigDict(extra="forbid")

    path: str
    seed: int


class EnsembleManifest(BaseModel):
    """`manifest.json`: everything about an ensemble that is not weights."""

    model_config = ConfigDict(extra="forbid")

    schema_name: str
    schema_version: int
    atomsieve: str
    cutoff: float
    config: ModelConfig
    default_head: str
    heads: list[HeadSpec]
    kind: Kind = "deep"
    members: list[MemberEntry]
    precision: dict[str, dict[str, float]]
    test_vector: dict[str, Any]
    training: dict[str, Any]
    files: dict[str, dict[str, Any]]
    exports: dict[str, ExportEntry] = {}
    formerly: list[str] = []
    """Identities that artefacts of these same weights may carry, from before a calibration changed the identity."""


def find_folder(folder: str | Path) -> Path:
    """Return the ensemble folder that a path names: itself, or the `gfm/` of a training when it is the only one inside.

    Raises
    ------
    AtomSieveError
        if there is none, or several are inside.
    """
    path = Path(folder)
    if (path / MANIFEST).is_file():
        return path
    inside = sorted(child.parent for child in path.glob(f"*/{MANIFEST}") if _is_manifest(child))
    if len(inside) == 1:
        return inside[0]
    if inside:
        names = ", ".join(str(found) for found in inside[:5])
        raise AtomSieveError(f"no ensemble at {folder}, but {len(inside)} inside; give one of them: {names}")
    return path  # to be opened, with the error that says what is missing


def _is_manifest(path: Path) -> bool:
    """Return True for the manifest of an ensemble; datasets have a file of that name too."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return f'"{SCHEMA}"' in file.read(4096)
    except OSError:
        return False


def read_manifest(folder: str | Path) -> EnsembleManifest:
    """Read and check `manifest.json` alone (no weights).

    Raises
    ------
    AtomSieveError
        if there is no such folder; DataError if the manifest is damaged or of a newer schema.
    """
    raw, path = _read_checked(folder), Path(folder) / MANIFEST
    try:
        return EnsembleManifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        raise DataError(f"{path}: {where}: {first['msg']}; the folder is damaged, copy it again") from error


def _read_checked(folder: str | Path) -> dict[str, Any]:
    """Return the content of the manifest, of this schema and version; the rest of it is unchecked."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise AtomSieveError(f"no ensemble at {folder}: {MANIFEST} is missing; give the folder that training wrote")
    if path.stat().st_size > _LARGEST_MANIFEST:
        raise DataError(f"{path} has {path.stat().st_size} bytes, more than any manifest; it is not an ensemble's")
    try:
        raw = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); the folder is damaged, copy it again") from error
    if not isinstance(raw, dict) or raw.get("schema_name") != SCHEMA:
        raise DataError(f"{path} is not an ensemble's manifest (schema_name must be {SCHEMA!r})")
    if raw.get("schema_version") != SCHEMA_VERSION:
        raise DataError(
            f"{folder} has schema version {raw.get('schema_version')!r}, this program reads {SCHEMA_VERSION}; "
            "install the version of atomsieve that wrote it"
        )
    return raw


def read_head_names(folder: str | Path) -> list[str]:
    """Return the names of the heads of an ensemble. The rest of the manifest is not checked, so torch is not loaded.

    Raises
    ------
    AtomSieveError
        if there is no such folder; DataError if the manifest is damaged or of a newer schema.
    """
    raw = _read_checked(folder)
    try:
        return [str(head["name"]) for head in raw["heads"]]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{Path(folder) / MANIFEST}: heads are missing; the folder is damaged, copy it again"
        ) from error


def ensemble_id(folder: str | Path) -> str:
    """Return the SHA-256 that names weights, heads, calibration and everything else of the ensemble.

    Neither exports nor the card count: the ensemble stays the same when it is exported.
    """
    return _digest(read_raw(Path(folder)), (CARD,))


def weights_id(folder: str | Path) -> str:
    """Return the SHA-256 of the content that artefacts depend on: `ensemble_id` without files fitted afterwards."""
    return _digest(read_raw(Path(folder)), (CARD, *FITTED))


def same_weights(folder: str | Path, identity: str) -> bool:
    """Return whether an artefact of this identity was made of the weights in a folder.

    Older artefacts carry the `ensemble_id` of their day; they stay valid when the ensemble is calibrated again.
    """
    return identity in (weights_id(folder), ensemble_id(folder), *read_raw(Path(folder)).get("formerly", ()))


def read_raw(place: Path) -> dict[str, Any]:
    """Return the manifest as it is written, with fields that this version does not change."""
    if not (place / MANIFEST).is_file():
        read_manifest(place)  # raises the error
    return dict(json.loads((place / MANIFEST).read_bytes()))


def _digest(raw: dict[str, Any], without: tuple[str, ...]) -> str:
    kept = {k: v for k, v in raw.items() if k not in ("exports", "formerly")}
    kept["files"] = {name: of for name, of in raw.get("files", {}).items() if name not in without}
    return hash_json(kept)
