"""run.json: the settings that decide the bytes of a result. A run continues an earlier one only if they are equal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atomsieve.errors import AtomSieveError, DataError
from atomsieve.predict.packing import PACKING_RULE
from atomsieve.runs.output_folder import find_changes, format_changes, write_output
from atomsieve.screen.results import columns
from atomsieve.screen.results.chunks import Chunks
from atomsieve.screen.results.files import ResultsFolder
from atomsieve.screen.results.software import computing, warn_if_changed

FORMAT = 2
COMPARED = ("format", "input", "ensemble", "options", "chunks", "batches", "cascade")
"""Sections that decide the bytes, with names and dtypes of the columns; the others are information and may change."""


@dataclass(frozen=True)
class RunFacts:
    """The facts that run.json records about a run.

    Attributes
    ----------
    input_path, input_identity, structures : the input, the digest of its content, structures in it.
    converted : the dataset that the input was converted into and how; None where the input is a dataset.
    ensemble_path, ensemble_id : the ensemble folder, None where servers hold it; the digest that names the ensemble.
    heads, precision, backend, device : in use; the kind of the device alone, `cpu` or `cuda`.
    artefact : digest of the exported artefact in use: another export has other last bits. None for native.
    precisions : names behind the codes of the column `precision`.
    uncalibrated : heads in use without calibrated energies.
    cutoff : Angstrom.
    forces, max_structure_atoms, force_spread : see `ScreenOptions`. members : whose energies are kept, 0 for none.
    oversized_marked : structures too large for the GPU alone get a status and are not computed on the CPU.
    chunks, max_atoms, max_edges, threads : how work is cut; threads are None where they do not matter.
    automatic : which of the two numbers of the budget no option gave.
    statuses, reasons : name and meaning by code, and by bit of the column `outside`.
    cascade : what decides the recomputed rows; None without a cascade.
    server : threads of the servers and how they cut a request; None where this process computes.
    endpoints : the servers; None where this process computes.
    carried : name and kind of each column that the input carries.
    references : description of the reference set of each head that has one.
    elements : atomic numbers that each head was trained on; of heads that say so.
    """

    input_path: str | Path
    input_identity: str
    structures: int
    ensemble_path: str | Path | None
    ensemble_id: str
    heads: list[str]
    precision: str
    backend: str
    device: str
    artefact: str | None
    precisions: list[str]
    uncalibrated: list[str]
    cutoff: float
    forces: bool
    max_structure_atoms: int
    force_spread: str
    oversized_marked: bool
    chunks: Chunks
    max_atoms: int
    max_edges: int
    threads: int | None
    automatic: tuple[str, ...]
    statuses: Mapping[int, tuple[str, str]]
    reasons: Mapping[int, tuple[str, str]]
    cascade: Mapping[str, Any] | None = None
    server: Mapping[str, Any] | None = None
    endpoints: list[str] | None = None
    converted: Mapping[str, Any] | None = None
    members: int = 0
    carried: list[list[str]] = field(default_factory=list)
    references: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    elements: Mapping[str, list[int]] = field(default_factory=dict)


def build_record(facts: RunFacts) -> dict[str, Any]:
    """Return the content of run.json as plain data."""
    return {
        "format": FORMAT,
        "input": {"identity": facts.input_identity, "structures": facts.structures},
        "ensemble": {
            "id": facts.ensemble_id,
            "heads": facts.heads,
            "precision": facts.precision,
            "backend": facts.backend,
            "device": facts.device,
            **({} if facts.artefact is None else {"artefact": facts.artefact}),
        },
        "options": {
            "screened": facts.chunks.n,
            "forces": facts.forces,
            **({"members": facts.members} if facts.members else {}),
            "max_structure_atoms": facts.max_structure_atoms,
            **({} if facts.force_spread == "all" else {"force_spread": facts.force_spread}),
            **({"oversized": "mark"} if facts.oversized_marked else {}),
        },
        "chunks": facts.chunks.describe(),
        "batches": {
            "rule": PACKING_RULE,
            "max_atoms": facts.max_atoms,
            "max_edges": facts.max_edges,
            "cutoff": facts.cutoff,
            "threads": facts.threads,
            **({} if facts.server is None else {"server": dict(facts.server)}),
        },
        "columns": columns.describe(),
        "heads": facts.heads,
        "precisions": facts.precisions,
        **({} if facts.cascade is None else {"cascade": dict(facts.cascade)}),
        "statuses": {str(code): {"name": name, "meaning": text} for code, (name, text) in facts.statuses.items()},
        "reasons": {str(bit): {"name": name, "meaning": text} for bit, (name, text) in facts.reasons.items()},
        "uncalibrated": facts.uncalibrated,
        "software": computing() if facts.endpoints is None else None,
        "input_path": str(facts.input_path),
        **({} if facts.converted is None else {"converted": dict(facts.converted)}),
        **({"carried": facts.carried} if facts.carried else {}),
        **({"references": dict(facts.references)} if facts.references else {}),
        **({"elements": dict(facts.elements)} if facts.elements else {}),
        "ensemble_path": None if facts.ensemble_path is None else str(Path(facts.ensemble_path).absolute()),
        **({} if facts.endpoints is None else {"endpoints": facts.endpoints}),
        "budget": {"automatic": list(facts.automatic)},
    }


def recorded_backend(folder: ResultsFolder) -> str | None:
    """Return the backend that a run in this folder has used so far, None where there is none."""
    backend = read(folder)["ensemble"].get("backend") if folder.run.is_file() else None
    return backend if isinstance(backend, str) else None


def list_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the settings that decide the bytes and differ between two manifests, as `key: old -> new`."""
    before, after = ({name: m.get(name) for name in COMPARED} | {"record": record(m)} for m in (old, new))
    changes = find_changes(before, after)
    if chunks := [name for name in changes if name.startswith("chunks.")]:
        for name in chunks:
            del changes[name]
        words = _describe_chunks(old), _describe_chunks(new)
        if words[0] != words[1] or not changes:
            changes["--chunk-size"] = words
    return format_changes(changes, longest=40, kept=12)


def _describe_chunks(manifest: Mapping[str, Any]) -> str:
    """Return the size of chunks as the user gave it."""
    chunks = manifest.get("chunks", {})
    return "left out" if chunks.get("taper") else str(chunks.get("size"))


def lacks_members(folder: ResultsFolder) -> bool:
    """Return whether the folder holds a run that keeps no energies of members, as older ones do."""
    try:
        return folder.run.is_file() and not read(folder)["options"].get("members")
    except (AtomSieveError, KeyError, TypeError, AttributeError):
        return False  # what is wrong is told when the folder is claimed


def recorded_chunks(folder: ResultsFolder) -> Chunks | None:
    """Return the chunks of the run in this folder, None where there is none, or its record cannot be read."""
    try:
        return Chunks.of(read(folder)) if folder.run.is_file() else None
    except (AtomSieveError, KeyError, TypeError, ValueError):
        return None  # what is wrong is told when the folder is claimed


def record(manifest: Mapping[str, Any]) -> list[str]:
    """Return name and dtype of every column of the row store, in order."""
    return [f"{column['name']} {column['dtype']}" for column in manifest.get("columns", [])]


def read(folder: ResultsFolder) -> dict[str, Any]:
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


def _follow_input(folder: ResultsFolder, earlier: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    """Record where the input lies now, what it carries, and the references: they do not decide the rows."""
    names = ("input_path", "converted", "carried", "references")
    places = {name: manifest[name] for name in names if name in manifest}
    if places != {name: earlier[name] for name in names if name in earlier}:
        found = {name: value for name, value in earlier.items() if name not in names}
        write_output(folder.run, (json.dumps(found | places, indent=1) + "\n").encode())


def settle(folder: ResultsFolder, manifest: dict[str, Any], *, overwrite: bool) -> bool:
    """Start a results folder, or agree to continue the one that is there; return True if it continues.

    Raises
    ------
    AtomSieveError
        if an earlier run was asked something else: the message names every difference.
    """
    earlier = folder.claim(
        manifest, overwrite=overwrite, read_record=lambda: read(folder), list_differences=list_differences
    )
    if earlier is not None and not folder.rows.exists():  # else all is computed
        warn_if_changed(earlier.get("software"), manifest.get("software"))
    if earlier is not None:
        _follow_input(folder, earlier, manifest)
    folder.ledger.mkdir(exist_ok=True)  # gone where results were copied in part: all is computed again
    return earlier is not None
