"""run.json: what decides the bytes of a result. A run continues an earlier one only if all of it is equal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atomsieve.errors import AtomSieveError, DataError
from atomsieve.predict.packing import PACKING_RULE
from atomsieve.screen.engine.runner import Runner
from atomsieve.screen.results import columns
from atomsieve.screen.results.chunks import Chunks
from atomsieve.screen.results.files import Folder, write_whole
from atomsieve.screen.results.software import computing, warn_if_changed

FORMAT = 2
COMPARED = ("format", "input", "ensemble", "options", "chunks", "batches", "cascade")
"""Sections that decide the bytes, beside names and dtypes of the columns; the others inform people and may change."""


def build(
    source: Path,
    reader: Any,
    runner: Runner,
    chunks: Chunks,
    statuses: Mapping[int, tuple[str, str]],
    reasons: Mapping[int, tuple[str, str]],
    ensemble: str | Path | None = None,
) -> dict[str, Any]:
    """Return the manifest of a run, as plain data."""
    predictor = runner.predictor
    return {
        "format": FORMAT,
        "input": {"identity": reader.identity(), "structures": len(reader)},
        "ensemble": {
            "id": predictor.ensemble_id,
            "heads": runner.heads,
            "precision": predictor.precision,
            "backend": getattr(predictor, "backend", "native"),
            "device": device_kind(predictor),
            **_artefact(predictor),
        },
        "options": {
            "screened": chunks.n,
            "forces": runner.forces,
            "max_structure_atoms": runner.max_structure_atoms,
            **({} if runner.force_spread == "all" else {"force_spread": runner.force_spread}),
            **({"oversized": "mark"} if device_kind(predictor) == "cuda" and runner.oversized is None else {}),
        },
        "chunks": chunks.describe(),
        "batches": {
            "rule": PACKING_RULE,
            "max_atoms": runner.max_atoms,
            "max_edges": runner.max_edges,
            "cutoff": predictor.cutoff,
            "threads": runner.threads,
            **_server(predictor),
        },
        "columns": columns.describe(),
        "heads": runner.heads,
        "precisions": getattr(predictor, "precisions", [predictor.precision]),
        **({"cascade": predictor.cascade} if hasattr(predictor, "cascade") else {}),
        "statuses": {str(code): {"name": name, "meaning": text} for code, (name, text) in statuses.items()},
        "reasons": {str(bit): {"name": name, "meaning": text} for bit, (name, text) in reasons.items()},
        "uncalibrated": uncalibrated(runner),
        "software": None if hasattr(predictor, "endpoints") else computing(),
        "input_path": str(source),
        "ensemble_path": None if ensemble is None else str(Path(ensemble).absolute()),
        **({"endpoints": predictor.endpoints} if hasattr(predictor, "endpoints") else {}),
    }


def _server(predictor: Any) -> dict[str, Any]:
    """Return what of a server decides the last bits: its threads, and how it cuts a request."""
    server = getattr(predictor, "server", None)
    return {} if server is None else {"server": dict(server)}


def uncalibrated(runner: Runner) -> list[str]:
    """Return the screened heads whose energies are not calibrated."""
    known = runner.predictor.describe().get("calibrated", {})
    return [h for h in runner.heads if "energy" not in known.get(h, ())]


def _artefact(predictor: Any) -> dict[str, str]:
    """Return what names the artefact that computes, if it is an exported one: another export has other last bits."""
    digest = getattr(predictor, "artefact", None)
    return {} if digest is None else {"artefact": digest}


def recorded_backend(folder: Folder) -> str | None:
    """Return the backend that a run in this folder has used so far, None where there is none."""
    backend = read(folder)["ensemble"].get("backend") if folder.run.is_file() else None
    return backend if isinstance(backend, str) else None


def device_kind(predictor: Any) -> str:
    """Return `cpu` or `cuda`: which GPU it is does not matter."""
    return str(predictor.device).partition(":")[0]


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one mapping with dotted keys."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    out: dict[str, Any] = {}
    for key, below in value.items():
        out.update(flatten(below, f"{prefix}.{key}" if prefix else str(key)))
    return out


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return what differs between two manifests in what decides the bytes, each as `key: old -> new`."""
    before = flatten({name: old.get(name) for name in COMPARED} | {"record": record(old)})
    after = flatten({name: new.get(name) for name in COMPARED} | {"record": record(new)})
    keys = [*before, *(key for key in after if key not in before)]
    return [
        f"{key}: {_short(before.get(key))} -> {_short(after.get(key))}"
        for key in keys
        if before.get(key) != after.get(key)
    ]


def record(manifest: Mapping[str, Any]) -> list[str]:
    """Return name and dtype of every column of the row store, in order."""
    return [f"{column['name']} {column['dtype']}" for column in manifest.get("columns", [])]


def _short(value: Any) -> str:
    if value is None:
        return "(none)"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def read(folder: Folder) -> dict[str, Any]:
    """Read run.json.

    Raises
    ------
    AtomSieveError
        if the folder holds no screening results; DataError if run.json is not readable as such.
    """
    try:
        found = json.loads(folder.run.read_text())
    except FileNotFoundError as error:
        message = f"{folder.path} holds no screening results (no run.json); name the --out of a run"
        raise AtomSieveError(message) from error
    except ValueError as error:
        raise DataError(f"{folder.run} is not valid JSON ({error}); start afresh with --overwrite") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        got = found.get("format") if isinstance(found, dict) else type(found).__name__
        raise DataError(f"{folder.run} has format {got!r}, this version reads {FORMAT}; start afresh with --overwrite")
    return found


def settle(folder: Folder, manifest: dict[str, Any], *, overwrite: bool) -> bool:
    """Start a results folder, or agree to continue the one that is there; return True if it continues.

    Raises
    ------
    AtomSieveError
        if an earlier run was asked something else: the message names every difference.
    """
    plain = json.loads(json.dumps(manifest))
    if folder.ours() and overwrite:
        folder.clear()
    continued = folder.run.is_file()
    if continued:
        before = read(folder)
        changed = differences(before, plain)
        if changed:
            raise AtomSieveError(
                f"{folder.path} holds results of other settings ({'; '.join(changed)}); repeat the earlier settings, "
                "choose another --out, or discard those results with --overwrite"
            )
        if not folder.rows.exists():  # else all is computed
            warn_if_changed(before.get("software"), plain.get("software"))
    folder.ledger.mkdir(exist_ok=True)  # gone where results were copied in part: all is computed again
    if not continued:
        write_whole(folder.run, (json.dumps(manifest, indent=1) + "\n").encode())
    return continued
