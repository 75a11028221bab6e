"""An exported artefact, opened: from structures and their graph to named outputs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError, DataError
from atomsieve.export.interface import Slot, check_inputs, check_symmetric, inputs
from atomsieve.export.spec import import_format
from atomsieve.gfm import EnsembleManifest, ExportEntry, same_weights, weights_id
from atomsieve.gfm.exports import check_export
from atomsieve.graphs import Graph
from atomsieve.graphs.table import table_arrays
from atomsieve.structures import StructureBatch


class Artefact:
    """One artefact of a gfm/ folder, ready to be called.

    Attributes
    ----------
    entry : its entry in the manifest; inputs : its slots, in order.
    """

    def __init__(
        self,
        folder: str | Path,
        manifest: EnsembleManifest,
        entry: ExportEntry,
        device: torch.device,
        place: Path | None = None,
    ) -> None:
        """Check every file of the artefact and open it.

        place : where its files lie, if not yet in the gfm/ folder.

        Raises
        ------
        DataError
            if a file is damaged; AtomSieveError if this machine cannot run it. Both name the remedy.
        """
        if entry.device != "any" and entry.device != device.type:
            raise AtomSieveError(
                f"{entry.key} was made for {entry.device}, not {device.type}; make one with: atomsieve export {folder} "
                f"--format {entry.format} --precision {entry.precision} --device {device.type}"
            )
        self.entry = entry
        self.inputs: tuple[Slot, ...] = inputs(
            charge_spin=manifest.config.charge_spin, truncated="reverse" in entry.inputs
        )
        if [s.name for s in self.inputs] != entry.inputs:
            raise DataError(
                f"{entry.key} takes {', '.join(entry.inputs)}, which this version does not know; export again"
            )
        if not same_weights(folder, entry.ensemble_id):
            own = weights_id(folder)
            raise DataError(
                f"{entry.key} was made of another ensemble ({entry.ensemble_id[:12]}, this one is {own[:12]}); make it "
                f"anew with: atomsieve export {folder} --format {entry.format} --precision {entry.precision}"
            )
        self._heads = len(manifest.heads)
        self._session = import_format(entry.format).open_session(check_export(folder, entry, place), entry, device)

    @property
    def digest(self) -> str:
        """SHA-256 that names the artefact."""
        return digest_of(self.entry)

    def arrays(self, batch: StructureBatch, graph: Graph, head: int | NDArray[np.integer]) -> dict[str, NDArray[Any]]:
        """Return the inputs of a batch, in order; `head` is an index, for all structures or for each [S]."""
        return input_arrays(self.inputs, batch, graph, head)

    def __call__(self, batch: StructureBatch, graph: Graph, head: int | NDArray[np.integer]) -> dict[str, NDArray[Any]]:
        """Return all outputs of a batch by name (see `atomsieve.export.interface`)."""
        return self._session(self.arrays(batch, graph, head))

    def evaluate(self, arrays: dict[str, Any]) -> dict[str, NDArray[Any]]:
        """Return all outputs for arrays made elsewhere, after checking everything about them.

        Raises
        ------
        UsageError
            in one line for a wrong name, dtype, shape, index or layout, or a truncated list where it must be complete.
        """
        checked = check_inputs(arrays, self.inputs, heads=self._heads)
        if "reverse" not in checked:
            check_symmetric(checked["neighbors"], checked["shifts"])
        return self._session({name: _as_contiguous(array) for name, array in checked.items()})


def input_arrays(
    slots: tuple[Slot, ...], batch: StructureBatch, graph: Graph, head: int | NDArray[np.integer]
) -> dict[str, NDArray[Any]]:
    """Return the arrays that fill the input slots of an artefact for a batch, in order.

    Raises
    ------
    AtomSieveError
        if the neighbour list is truncated and the artefact needs a complete one.
    """
    reverse = any(slot.name == "reverse" for slot in slots)
    if not reverse and not graph.neighbors.symmetric:
        raise AtomSieveError("this artefact needs a complete neighbour list, and this one is truncated")
    given: dict[str, NDArray[Any]] = {
        "numbers": batch.numbers,
        "positions": np.asarray(batch.positions, np.float64),
        "cell": np.asarray(batch.cell, np.float64),
        "structure": batch.structure_of_atom,
        "head": np.broadcast_to(np.asarray(head, np.int64), (len(batch),)),
        **table_arrays(graph.neighbors, batch.n_atoms, reverse=reverse),
    }
    if batch.charge is not None and batch.spin is not None:
        given |= {"charge": batch.charge, "spin": batch.spin}
    return {s.name: _as_contiguous(given[s.name]) for s in slots}


def digest_of(entry: ExportEntry) -> str:
    """Return the SHA-256 that names an artefact: of the digests of its files, by name."""
    files = "".join(f"{name} {of['sha256']}\n" for name, of in sorted(entry.files.items()))
    return hashlib.sha256(files.encode()).hexdigest()


def _as_contiguous(array: NDArray[Any]) -> NDArray[Any]:
    """Return a contiguous array, which compiled code needs, that is writable, which torch demands."""
    return np.require(array, requirements=["C", "W"])
