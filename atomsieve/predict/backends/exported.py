"""The backends that run an exported artefact, whichever its format."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError, UsageError
from atomsieve.export.artefact import Artefact
from atomsieve.gfm import EnsembleManifest, ExportEntry
from atomsieve.gfm.backends import BACKENDS
from atomsieve.gfm.exports import export_key
from atomsieve.graphs import Graph
from atomsieve.models import Ensemble
from atomsieve.models.precision import item_size
from atomsieve.predict.backends.interface import MAX_ATOMS, MEMORY, BackendOutput
from atomsieve.predict.backends.native import NativeBackend
from atomsieve.structures import StructureBatch


class ExportedBackend:
    """An exported artefact; energies alone come from an energy-only one where the folder has it."""

    dtype = torch.float32
    budget: tuple[int, int] | None = None

    def __init__(
        self,
        artefact: Artefact,
        energy_only: Artefact | None,
        encoder: NativeBackend,
        max_atoms: int,
        why: str = "as asked",
    ) -> None:
        self.artefact, self.energy_only, self.encoder, self.why = artefact, energy_only, encoder, why
        self.name, self.precision = artefact.entry.format, artefact.entry.precision
        self.digest: str | None = artefact.digest
        self.max_atoms = max_atoms
        given = {"forces": "forces", "stress": "virial"}
        stored = {name for name, output in given.items() if output in artefact.entry.outputs}
        self.outputs = frozenset(stored | {"energy_members"})

    def __call__(
        self, batch: StructureBatch, graph: Graph, head: int | NDArray[np.float64], want: Collection[str]
    ) -> BackendOutput:
        """See `Backend`."""
        entry = self.artefact.entry
        if isinstance(head, np.ndarray):
            raise UsageError(f"{entry.key} cannot mix heads; name one head, or use --backend native with head auto")
        forces, stress = "forces" in want, "stress" in want
        lacking = [n for n, asked in (("forces", forces), ("virial", stress)) if asked and n not in entry.outputs]
        if lacking:
            raise UsageError(
                f"{entry.key} gives no {lacking[0]}; allowed: {', '.join(entry.outputs)}. Export without "
                "--energy-only, or use --backend native"
            )
        spread = forces and "force_spread" in want and "forces_std" not in entry.outputs
        if "energies" in want or (forces and "members" in want) or spread:
            what = "energies of atoms" if "energies" in want else "spread of forces" if spread else "forces of members"
            raise UsageError(f"{entry.key} gives no {what}; use --backend native")
        light = self.energy_only is not None and not (forces or stress)
        found = (self.energy_only if light else self.artefact)(batch, graph, head)  # type: ignore[misc]
        out: dict[str, Any] = {n: found[n] for n in ("energy_members", "energy", "energy_std")}
        if forces:
            given = [n for n in ("forces", "forces_std") if n in entry.outputs]
            out |= {n: np.asarray(found[n], np.float64) for n in given}
        features = None
        if "features" in want:  # an artefact holds none: the first member's encoder gives them, energies alone
            features = self.encoder(batch, graph, head, {"energy", "features"}).features
        return BackendOutput(**out, virial=found["virial"] if stress else None, features=features)


def open_backend(
    name: str,
    folder: str | Path,
    ensemble: Ensemble,
    manifest: EnsembleManifest,
    precision: str,
    device: torch.device,
    why: str,
) -> ExportedBackend:
    """Open the artefact of format `name`; `why` is one line on how it was chosen.

    Raises
    ------
    AtomSieveError
        if there is none, or this machine cannot run it; DataError if a file is damaged.
    """
    entry = export_entry(folder, manifest, name, precision, device)
    light = manifest.exports.get(export_key(name, precision, "energy", entry.device))
    if light is entry:
        light = None
    return ExportedBackend(
        Artefact(folder, manifest, entry, device),
        None if light is None else Artefact(folder, manifest, light, device),
        NativeBackend(ensemble.take([0]), "fp32", device),
        atoms_at_once(manifest, entry, device),
        why,
    )


def atoms_at_once(manifest: EnsembleManifest, entry: ExportEntry, device: torch.device) -> int:
    """Return how many atoms an artefact evaluates at once: runtimes that fuse nothing hold every array of edges."""
    config = manifest.config
    places = places_per_atom(manifest)
    size = item_size(entry.precision)
    encoders = 1 if manifest.kind == "shallow" else len(manifest.members)
    bytes_per_atom = BACKENDS[entry.format].arrays * encoders * places * config.hidden * size
    return int(np.clip(MEMORY[device.type] / bytes_per_atom, 100, MAX_ATOMS[device.type]))


def places_per_atom(manifest: EnsembleManifest) -> float:
    """Return how wide a neighbour table is expected to be."""
    return manifest.config.max_neighbors or 1.5 * manifest.config.typical_neighbors


def find_export(manifest: EnsembleManifest, name: str, precision: str, device: torch.device) -> ExportEntry | None:
    """Return the artefact for a format, precision and device, one with forces before one without; None without one."""
    for kind in ("forces", "energy"):
        for made_for in dict.fromkeys((device.type, "cpu")):
            entry = manifest.exports.get(export_key(name, precision, kind, made_for))
            if entry is not None and entry.device in (device.type, "any"):
                return entry
    return None


def export_entry(
    folder: str | Path, manifest: EnsembleManifest, name: str, precision: str, device: torch.device
) -> ExportEntry:
    """Return the artefact for a format, precision and device; one with forces before one without.

    Raises
    ------
    AtomSieveError
        if there is none, with the command that makes it.
    """
    entry = find_export(manifest, name, precision, device)
    if entry is None:
        there = ", ".join(manifest.exports) or "none"
        raise AtomSieveError(
            f"{folder} has no {name} export in {precision} for {device.type} (there: {there}); make it with: "
            f"atomsieve export {folder} --format {name} --precision {precision}"
            + (f" --device {device.type}" if device.type != "cpu" else "")
        )
    return entry
