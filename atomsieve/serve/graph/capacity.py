"""Size limits of one graph: atoms and neighbour-table places that a graph model evaluates at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from atomsieve.gfm import EnsembleManifest, ExportEntry
from atomsieve.graphs.limits import MAX_NEIGHBORS_PER_ATOM
from atomsieve.predict.backends.exported import atoms_at_once, places_per_atom
from atomsieve.serve.model.settings import Settings

PADDING = 2.0
"""Table places allowed for each expected edge; the table is as wide as its atom with most neighbours."""
BYTES_PER_ATOM = 128
BYTES_PER_PLACE = 28
"""A place holds a neighbour (int64), a shift (three int32) and the position of the reverse edge (int64)."""


@dataclass(frozen=True)
class Capacity:
    """Largest graph that a graph model evaluates. atoms : N; places : N * W of the padded table [N, W]."""

    atoms: int
    places: int

    @staticmethod
    def of(manifest: EnsembleManifest, entry: ExportEntry, settings: Settings) -> Capacity:
        """Return the capacity from `max_atoms` and `max_edges` of the settings, else as `Predictor` derives it."""
        atoms = settings.max_atoms or atoms_at_once(manifest, entry, torch.device(settings.device.partition(":")[0]))
        edges = settings.max_edges or int(atoms * places_per_atom(manifest))
        return Capacity(atoms, int(PADDING * edges))

    @property
    def bytes(self) -> int:
        """Bytes of the tables of a graph of this size."""
        return BYTES_PER_ATOM * max(self.atoms, 1) + BYTES_PER_PLACE * max(self.places, MAX_NEIGHBORS_PER_ATOM)

    def refusal(self, atoms: int, width: int) -> str | None:
        """Return why a table [atoms, width] is too large, or None. A single atom may have MAX_NEIGHBORS_PER_ATOM."""
        places = max(self.places, MAX_NEIGHBORS_PER_ATOM) if atoms <= 1 else self.places
        for name, size, most in (("atoms", atoms, max(self.atoms, 1)), ("places (N * W)", atoms * width, places)):
            if size > most:
                return (
                    f"the graph has {size} {name}, allowed are {most} at once; send fewer structures, or use the model "
                    "for raw structures, which cuts its work by itself"
                )
        return None
