"""Writing, reading and changing a gfm/ folder: complete, checked byte for byte, and safe to open from a stranger."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from atomsieve.errors import AtomSieveError, DataError, UsageError
from atomsieve.gfm.card import model_card
from atomsieve.gfm.evaluation_file import EVALUATION, read_evaluation
from atomsieve.gfm.exports import ExportEntry
from atomsieve.gfm.manifest import (
    CALIBRATION,
    CARD,
    FITTED,
    MANIFEST,
    SCHEMA,
    SCHEMA_VERSION,
    EnsembleManifest,
    MemberEntry,
    ensemble_id,
    read_manifest,
    read_raw,
)
from atomsieve.gfm.test_vector import make_test_vector
from atomsieve.gfm.weights import read_weights, write_weights
from atomsieve.models.ensemble import Ensemble
from atomsieve.runs.hashing import hash_file
from atomsieve.runs.lock import PathLock
from atomsieve.runs.output_files import atomic_folder, atomic_write, sync_file, sync_folder
from atomsieve.structures import StructureBatch
from atomsieve.uncertainty.calibration import Calibration, parse_calibration
from atomsieve.version import __version__

LOCK = ".manifest.lock"
_LARGEST_CALIBRATION = 64 << 20
_PATIENCE = 20.0  # seconds to wait for another process that changes the manifest


def save_gfm(
    folder: str | Path,
    ensemble: Ensemble,
    *,
    default_head: str | None = None,
    examples: StructureBatch | None = None,
    calibration: Calibration | None = None,
    training: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an ensemble as a gfm/ folder, whole or not at all, and return its path.

    default_head : must be named if there are several heads.
    examples : a few structures of the training domain for the test vector; small built-in ones are always added.
    calibration : of the spread (None: all heads uncalibrated).
    training : anything JSON-able that describes how the ensemble was made.

    Raises
    ------
    UsageError
        if the default head is not stated, or the folder exists and `overwrite` is not given.
    """
    target = Path(folder)
    names = [h.name for h in ensemble.heads]
    if default_head is None:
        if len(names) > 1:
            raise UsageError(f"an ensemble of several heads needs a default_head; allowed: {', '.join(names)}")
        default_head = names[0]
    ensemble.head_index(default_head)
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists; choose another folder or ask to overwrite")
    if target.exists() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise UsageError(f"{target} holds something that is not an ensemble; refusing to overwrite it")
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(target) as work:
        _write(work, ensemble, default_head, examples, calibration or Calibration(), dict(training or {}))
    return target


def _write(
    work: Path,
    ensemble: Ensemble,
    default_head: str,
    examples: StructureBatch | None,
    calibration: Calibration,
    training: dict[str, Any],
) -> None:
    members = [MemberEntry(path=f"members/{k:03d}", seed=seed) for k, seed in enumerate(ensemble.seeds)]
    write_weights(work, ensemble, [m.path for m in members])
    for member in members:
        description = {"seed": member.seed, **ensemble.config.model_dump(mode="json")}
        (work / member.path / "model.yaml").write_text(yaml.safe_dump(description, sort_keys=False))
    vector, precision = make_test_vector(ensemble, examples)
    (work / CALIBRATION).write_bytes(calibration.dumps())
    manifest = EnsembleManifest(
        schema_name=SCHEMA,
        schema_version=SCHEMA_VERSION,
        atomsieve=__version__,
        cutoff=ensemble.config.cutoff,
        config=ensemble.config,
        default_head=default_head,
        heads=ensemble.heads,
        kind=ensemble.kind,
        members=members,
        precision=precision,
        test_vector=vector,
        training=training,
        files={},
    )
    for path in sorted(p for p in work.rglob("*") if p.is_file()):
        manifest.files[path.relative_to(work).as_posix()] = {"size": path.stat().st_size, "sha256": hash_file(path)}
    (work / CARD).write_text(model_card(manifest.model_dump(), calibration))
    (work / MANIFEST).write_text(manifest.model_dump_json(indent=1))
    for path in work.rglob("*"):
        if path.is_file():
            sync_file(path)


def _check_files(folder: Path, manifest: EnsembleManifest) -> None:
    for name, expected in manifest.files.items():
        if name == CARD:  # for people, who may add to it
            continue
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts:
            raise DataError(
                f"{folder}: the manifest names a file outside the folder, {name!r}; do not trust this folder"
            )
        path = folder / relative
        if name in FITTED:
            _settle(path, expected)
        if not path.is_file():
            raise DataError(f"{folder}: {name} is missing; the folder is incomplete, copy it again")
        size = path.stat().st_size
        if size != expected.get("size"):
            raise DataError(
                f"{folder}: {name} has {size} bytes, the manifest says {expected.get('size')}; copy it again"
            )
        if hash_file(path) != expected.get("sha256"):
            raise DataError(f"{folder}: {name} was changed (its SHA-256 differs from the manifest's); copy it again")
    for name in FITTED:
        if name not in manifest.files and (folder / name).exists():
            raise DataError(f"{folder}: {name} is not listed in {MANIFEST}; remove it, or copy the folder again")


def _read_checked_manifest(place: Path) -> EnsembleManifest:
    """Read the manifest and check all files; once more where another process changed the manifest meanwhile."""
    while True:
        manifest = read_manifest(place)
        try:
            _check_files(place, manifest)
        except DataError:
            if read_manifest(place).files == manifest.files:
                raise
        else:
            return manifest


def load_gfm(folder: str | Path) -> tuple[Ensemble, EnsembleManifest]:
    """Read an ensemble (FP32 weights, on the CPU) and its manifest, after checking every file's size and SHA-256.

    Raises
    ------
    DataError
        naming the file that is missing, changed or of the wrong shape.
    """
    place = Path(folder)
    manifest = _read_checked_manifest(place)
    ensemble = Ensemble(manifest.config, manifest.heads, [m.seed for m in manifest.members], manifest.kind)
    read_weights(place, ensemble, [m.path for m in manifest.members], manifest.files)
    return ensemble.eval(), manifest


def read_calibration(folder: str | Path) -> Calibration:
    """Read calibration.json, of whatever version; without the file no head is calibrated."""
    path = Path(folder) / CALIBRATION
    if (Path(folder) / MANIFEST).is_file():
        _settle(path, read_raw(Path(folder)).get("files", {}).get(CALIBRATION, {}))
    if not path.is_file():
        return Calibration()
    if (size := path.stat().st_size) > _LARGEST_CALIBRATION:
        raise DataError(f"{path} has {size} bytes, more than any calibration; calibrate the ensemble again")
    return parse_calibration(path.read_bytes(), str(path))


def record_exports(folder: str | Path, changed: Mapping[str, ExportEntry | None]) -> EnsembleManifest:
    """Enter artefacts into the manifest (None removes one), rewrite the card, and return the manifest.

    The manifest is replaced whole, so that a reader sees it as it was before or after.
    """
    place = Path(folder)
    with _changing(place) as raw:
        exports = raw.get("exports", {})
        for key, entry in changed.items():
            exports.pop(key, None)
            if entry is not None:
                exports[key] = entry.model_dump(mode="json")
        raw["exports"] = dict(sorted(exports.items()))
        atomic_write(place / MANIFEST, (json.dumps(raw, indent=1)).encode())
        return _new_card(place)


def record_files(folder: str | Path, contents: Mapping[str, bytes | Callable[[], bytes]]) -> EnsembleManifest:
    """Put files that are fitted afterwards (names of `FITTED`) into the folder, durably, and return the manifest.

    The new manifest makes them valid: each file waits under another name until then, and a reader of the folder in
    between, or after this process was killed, moves it to its place. The identity of the ensemble changes; that of its
    weights does not. A callable is called while no other process can change the file that it builds on.
    """
    place = Path(folder)
    for name in contents:
        if name not in FITTED:
            raise UsageError(f"{name!r} cannot be put into an ensemble afterwards; allowed: {', '.join(FITTED)}")
    with _changing(place) as raw:
        made = {name: content if isinstance(content, bytes) else content() for name, content in contents.items()}
        before = ensemble_id(place)
        if any(entry.get("ensemble_id") == before for entry in raw.get("exports", {}).values()):
            raw["formerly"] = sorted({before, *raw.get("formerly", ())})
        for name, content in made.items():
            digest = hashlib.sha256(content).hexdigest()
            waiting = _waiting(place / name, digest)
            waiting.write_bytes(content)
            sync_file(waiting)
            raw["files"][name] = {"size": len(content), "sha256": digest}
        sync_folder(place)
        atomic_write(place / MANIFEST, (json.dumps(raw, indent=1)).encode())
        for name in contents:
            _settle(place / name, raw["files"][name])
            for left in place.glob(f".{name}.*.next"):  # of a process that was killed before its manifest
                left.unlink(missing_ok=True)
        sync_folder(place)
        return _new_card(place)


def record_evaluation(folder: str | Path, evaluation: Mapping[str, Any]) -> None:
    """Write the evaluation of an ensemble into its folder and show it in the card; the ensemble stays the same."""
    place = Path(folder)
    with _changing(place):
        atomic_write(place / EVALUATION, json.dumps(evaluation, indent=1, allow_nan=False).encode())
        _new_card(place)


@contextmanager
def _changing(place: Path) -> Iterator[dict[str, Any]]:
    """Give the manifest as it stands, checked, while no other process changes it; fields of it stay as written."""
    with ExitStack() as stack:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                stack.enter_context(PathLock(place / LOCK))
                break
            except AtomSieveError:
                if time.monotonic() > deadline or not (place / LOCK).exists():
                    raise
                time.sleep(0.1)
        for name, expected in read_manifest(place).files.items():
            if name in FITTED:
                _settle(place / name, expected)
        yield read_raw(place)


def _waiting(path: Path, digest: str) -> Path:
    """Return where a file waits: of its content, so that it never changes once a manifest means it."""
    return path.with_name(f".{path.name}.{digest[:16]}.next")


def _settle(path: Path, expected: Mapping[str, Any]) -> None:
    """Move a file to its place that waits for it, if it is the one that the manifest means."""
    digest = str(expected.get("sha256"))
    if not digest.isalnum():  # it becomes part of a path
        return
    waiting = _waiting(path, digest)
    try:
        if waiting.is_file() and hash_file(waiting) == digest:
            os.replace(waiting, path)
    except FileNotFoundError:  # another process moved it
        return
    except OSError as error:
        raise DataError(
            f"{path.parent}: {path.name} was changed, and this process may not finish that ({error.strerror}); let its "
            "owner run any command on the folder once"
        ) from error


def _new_card(place: Path) -> EnsembleManifest:
    """Rewrite the card and return the manifest that it shows."""
    manifest = read_manifest(place)
    evaluation = read_evaluation(place)
    present = evaluation is None or evaluation.get("ensemble", {}).get("id") == ensemble_id(place)
    card = model_card(manifest.model_dump(), read_calibration(place), evaluation, of_present=present)
    atomic_write(place / CARD, card.encode())
    return manifest
