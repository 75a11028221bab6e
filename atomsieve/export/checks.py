"""The structures that an artefact is checked on: the ensemble's test vector, varied structures, and small candidates.

Generated structures are a function of the manifest alone. They are sane: no two atoms are nearer than covalent radii
allow, or than any two in the head's training data where the manifest records the shortest distance. So limits in eV and
Angstrom are meaningful.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError, UsageError
from atomsieve.gfm import EnsembleManifest
from atomsieve.graphs import build_graph, count_edges, edge_budget_estimate
from atomsieve.models import HeadSpec
from atomsieve.structures import StructureBatch
from atomsieve.structures.conversion.ready import open_any

VARIED, RANKED = 200, 5000
"""Structures of varied size, and small candidates that are ranked."""
LARGEST = 500
"""Most atoms of a structure of the user: the FP64 reference is slow."""
DENSEST = 0.1
"""Atoms per cubic Angstrom that no generated solid exceeds; metals and molecular solids have about as many."""
PIECE_ATOMS = 1500
_NEAREST = 0.5  # Angstrom; own structures with nearer atoms are left out
_LATTICES: dict[str, tuple[list[list[float]], float]] = {
    "sc": ([[0, 0, 0]], 1.0),
    "bcc": ([[0, 0, 0], [0.5, 0.5, 0.5]], 3**0.5 / 2),
    "fcc": ([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]], 0.5**0.5),
    "diamond": (
        [
            [0, 0, 0],
            [0, 0.5, 0.5],
            [0.5, 0, 0.5],
            [0.5, 0.5, 0],
            [0.25, 0.25, 0.25],
            [0.25, 0.75, 0.75],
            [0.75, 0.25, 0.75],
            [0.75, 0.75, 0.25],
        ],
        3**0.5 / 4,
    ),
}
"""Sites of a cube of side 1, and the distance of nearest sites."""
_PERIODIC = {"crystal": (1, 1, 1), "slab": (1, 1, 0), "wire": (1, 0, 0), "molecule": (0, 0, 0)}


@dataclass(frozen=True)
class Part:
    """Structures with the index of the head that each is evaluated for."""

    batch: StructureBatch
    head: NDArray[np.int64]

    def pieces(self, cutoff: float, max_edges: float, max_atoms: int = PIECE_ATOMS) -> list[NDArray[np.int64]]:
        """Split into consecutive pieces of at most so many atoms and estimated edges (one structure at the least)."""
        counts, edges = self.batch.counts, edge_budget_estimate(self.batch, cutoff)
        pieces, start, atoms, total = [], 0, 0, 0.0
        for k in range(len(counts)):
            if k > start and (atoms + counts[k] > max_atoms or total + edges[k] > max_edges):
                pieces.append(np.arange(start, k))
                start, atoms, total = k, 0, 0.0
            atoms, total = atoms + int(counts[k]), total + float(edges[k])
        return [*pieces, np.arange(start, len(counts))] if len(counts) > start else pieces

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return everything as arrays by name."""
        return {**self.batch.present(), "of_head": self.head}

    @staticmethod
    def of_arrays(arrays: dict[str, NDArray[Any]]) -> Part:
        """Undo `arrays`."""
        fields = dict(arrays)
        head = fields.pop("of_head")
        return Part(StructureBatch(**fields).validate(), head)


@dataclass(frozen=True)
class Checks:
    """The structures that an artefact is checked on.

    Attributes
    ----------
    vector : the test vector's structures, for every head; varied : 1 to about 100 atoms, heads in turn. Everything is
        compared on these two.
    ranked : small candidates of the default head; their order by energy is compared.
    own : `varied` and `ranked` are structures of the user.
    """

    vector: Part
    varied: Part
    ranked: Part
    own: bool = False

    @staticmethod
    def of(manifest: EnsembleManifest, structures: Path | None = None) -> Checks:
        """Make the checks of an ensemble; `structures` (.bp) are taken instead of generated ones.

        Raises
        ------
        UsageError
            if none of the user's structures can be evaluated.
        """
        default = [h.name for h in manifest.heads].index(manifest.default_head)
        charged = manifest.config.charge_spin
        vector = _test_vector(manifest)
        if structures is not None:
            varied, ranked = _read_user_parts(structures, manifest, default)
            return Checks(vector, varied, ranked, own=True)
        heads = [k % len(manifest.heads) for k in range(VARIED)]
        varied = generate_part(manifest.heads, heads, "varied", charged)
        return Checks(vector, varied, generate_part(manifest.heads, [default] * RANKED, "small", charged))

    def save(self, path: Path) -> None:
        """Write all structures to a .npz file."""
        parts = {"vector": self.vector, "varied": self.varied, "ranked": self.ranked}
        arrays: dict[str, Any] = {f"{p}.{n}": a for p, part in parts.items() for n, a in part.arrays().items()}
        np.savez(path, own=np.array(self.own), **arrays)

    @staticmethod
    def load(path: Path) -> Checks:
        """Read a file written by `save`."""
        with np.load(path, allow_pickle=False) as saved:
            parts: dict[str, dict[str, NDArray[Any]]] = {}
            for name in saved.files:
                part, _, field = name.partition(".")
                if field:
                    parts.setdefault(part, {})[field] = saved[name]
            own = bool(saved["own"])
        return Checks(**{name: Part.of_arrays(fields) for name, fields in parts.items()}, own=own)


def _test_vector(manifest: EnsembleManifest) -> Part:
    batches, heads = [], []
    names = [h.name for h in manifest.heads]
    for name, stored in manifest.test_vector["heads"].items():
        ptr = np.array(stored["ptr"], np.int64)
        many = len(ptr) - 1
        batch = StructureBatch(
            ptr=ptr,
            numbers=np.array(stored["numbers"], np.uint8),
            positions=np.array(stored["positions"], np.float64).reshape(-1, 3),
            cell=np.array(stored["cell"], np.float64).reshape(-1, 3, 3),
            pbc=np.array(stored["pbc"], bool).reshape(-1, 3),
            id=np.arange(many, dtype=np.int64),
        )
        if manifest.config.charge_spin:
            batch = batch.replace(charge=np.zeros(many, np.float32), spin=np.ones(many, np.float32))
        batches.append(batch)
        heads.append(np.full(many, names.index(name), np.int64))
    return Part(StructureBatch.concatenate(batches), np.concatenate(heads))


# -- generated -----------------------------------------------------------------------------------------------------


def generate_part(heads: Sequence[HeadSpec], of: Sequence[int], sizes: str, charged: bool) -> Part:
    """Return one structure for each entry of `of`, an index of a head whose elements it is made of.

    sizes : "varied" for 1 to 100 atoms (molecules, crystals, slabs, wires), "small" for 2 to 12 (crystals, molecules).
    charged : give every structure a charge and a multiplicity.
    """
    kinds = tuple(_PERIODIC) if sizes == "varied" else ("crystal", "molecule")
    rng = np.random.Generator(np.random.Philox(key=np.array([len(of), sizes == "varied"], np.uint64)))
    known = [sorted(z for z in h.references if h.elements.get(z, 0) > 0) or sorted(h.references) or [1] for h in heads]
    parts = []
    for k, head in enumerate(of):
        # Small ones of a kind lie together, as in a screening: tables of neighbours are then full, and speeds true.
        turn = k // len(heads) if sizes == "varied" else 2 * k // len(of)
        if sizes == "small":
            size = int(rng.integers(2, 13))
        else:  # lone atoms first: one of each kind, and the largest
            size = 1 if turn < len(kinds) else 100 if turn < 2 * len(kinds) else round(2 * 50 ** rng.random())
        parts.append(_structure(rng, known[head], kinds[turn % len(kinds)], size))
    batch = _concatenate(parts)
    if charged:
        charge, spin = rng.choice([0, 0, 0, 1, -1, 2], len(of)), rng.choice([1, 1, 2, 3], len(of))
        batch = batch.replace(charge=charge.astype(np.float32), spin=spin.astype(np.float32))
    seen = np.array([float(h.statistics.get("shortest_distance", 0.0)) for h in heads])
    which = np.array(of, np.int64)
    return Part(_spread_out(batch, seen[which]), which)


def _structure(rng: np.random.Generator, known: list[int], kind: str, size: int) -> dict[str, Any]:
    """Return numbers, positions, cell and pbc of a piece of a lattice: rattled, strained, with empty sites."""
    from ase.data import covalent_radii

    chosen = rng.choice(known, min(len(known), int(rng.integers(1, 5))), replace=False)
    numbers = rng.choice(chosen, size).astype(np.uint8)
    radii = covalent_radii[numbers]
    apart = max(rng.uniform(1.0, 1.3) * 2 * radii.mean(), 1.9 * radii.max())
    sites, nearest = _LATTICES[rng.choice(list(_LATTICES))]
    loosest = (len(sites) / (DENSEST * rng.uniform(0.5, 1.0))) ** (1 / 3)
    side = max(apart / nearest, loosest)
    if kind == "molecule":
        edge = int(np.ceil((2 * size / len(sites)) ** (1 / 3))) + 1
        grid = _grid(sites, (edge, edge, edge)) * side
        centre = grid.mean(0) + rng.uniform(-1, 1, 3)
        places = grid[np.argsort(np.linalg.norm(grid - centre, axis=1), kind="stable")[:size]]
        repeats = (1, 1, 1)
    else:
        cells = -(-size // len(sites))
        across = int(rng.integers(1, max(2, round(cells ** (1 / 3)) + 1)))
        along = int(rng.integers(1, max(2, round((cells / across) ** 0.5) + 1)))
        repeats = (across, along, -(-cells // (across * along)))
        grid = _grid(sites, repeats) * side
        places = grid[np.sort(rng.permutation(len(grid))[:size])]
    pbc = np.array(_PERIODIC[kind], bool)
    deformation = np.eye(3) + rng.uniform(-0.05, 0.05, (3, 3))
    rattle = np.clip(rng.normal(scale=0.05, size=places.shape), -0.1, 0.1) * side * nearest
    lengths = np.array(repeats) * side
    if kind != "molecule":  # without periodicity: a cell with empty space, or none
        lengths = np.where(pbc, lengths, (lengths + 12.0) * rng.integers(2))
    cell = np.diag(np.where(pbc.any(), lengths, 0.0))
    return {"numbers": numbers, "positions": places @ deformation + rattle, "cell": cell @ deformation, "pbc": pbc}


def _grid(sites: list[list[float]], repeats: tuple[int, int, int]) -> NDArray[np.float64]:
    corners = np.stack(np.meshgrid(*(np.arange(n) for n in repeats), indexing="ij"), -1).reshape(-1, 3)
    return np.asarray((corners[:, None] + np.array(sites)[None]).reshape(-1, 3), np.float64)


def _concatenate(parts: list[dict[str, Any]]) -> StructureBatch:
    counts = [len(p["numbers"]) for p in parts]
    return StructureBatch(
        ptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        numbers=np.concatenate([p["numbers"] for p in parts]),
        positions=np.concatenate([p["positions"] for p in parts]),
        cell=np.stack([p["cell"] for p in parts]),
        pbc=np.stack([p["pbc"] for p in parts]),
        id=np.arange(len(parts), dtype=np.int64),
    )


def _spread_out(batch: StructureBatch, seen: NDArray[np.float64]) -> StructureBatch:
    """Scale structures up until no two atoms are nearer than 0.8 of the sum of their covalent radii, or than `seen`."""
    from ase.data import covalent_radii

    graph = build_graph(batch, 4.5)
    sender, receiver = graph.neighbors.sender.numpy(), graph.neighbors.receiver.numpy()
    length = np.linalg.norm(graph.vec.numpy(), axis=1)
    owner = batch.structure_of_atom
    radii = covalent_radii[batch.numbers]
    wanted = np.maximum(0.8 * (radii[sender] + radii[receiver]), seen[owner[receiver]])
    factor = np.ones(len(batch))
    np.maximum.at(factor, owner[receiver], 1.001 * wanted / length)
    return batch.replace(positions=batch.positions * factor[owner, None], cell=batch.cell * factor[:, None, None])


# -- the user's own ------------------------------------------------------------------------------------------------


def _read_user_parts(path: Path, manifest: EnsembleManifest, default: int) -> tuple[Part, Part]:
    """Return structures of a file for all comparisons, and for the ranking by the default head."""
    with open_any(path, labels=False) as reader:
        spans = np.unique(np.linspace(0, max(len(reader) - 100, 0), 50).astype(int)) if len(reader) > RANKED else [0]
        reach = 100 if len(reader) > RANKED else len(reader)
        found = [reader.read(int(a), min(int(a) + reach, len(reader)), ["charge", "spin"]) for a in spans]
    batch = _usable(StructureBatch.concatenate(found), manifest)
    knows = np.stack([_only(batch, sorted(h.references)) for h in manifest.heads])  # [H,S]
    some = np.flatnonzero(knows.any(0))
    ranked = np.flatnonzero(knows[default])[:RANKED]
    if not len(some):
        raise UsageError(
            f"none of the structures of {path} serves as a check: wanted are 1 to {LARGEST} atoms of elements that a "
            "head knows, no two atoms on one point" + (", with charge and spin" if manifest.config.charge_spin else "")
        )
    chosen = some[np.unique(np.linspace(0, len(some) - 1, min(VARIED, len(some))).astype(int))]
    heads = [np.flatnonzero(knows[:, s])[k % knows[:, s].sum()] for k, s in enumerate(chosen)]
    varied = Part(batch.take(chosen), np.array(heads, np.int64))
    return varied, Part(batch.take(ranked), np.full(len(ranked), default, np.int64))


def _usable(batch: StructureBatch, manifest: EnsembleManifest) -> StructureBatch:
    """Return the structures that can be evaluated, without labels."""
    charged = manifest.config.charge_spin
    kept = {name: getattr(batch, name) for name in ("ptr", "numbers", "cell", "pbc", "id")}
    state: dict[str, Any] = {}
    good = (batch.counts > 0) & (batch.counts <= LARGEST) & np.isfinite(batch.cell).all((1, 2))
    np.logical_and.at(good, batch.structure_of_atom, np.isfinite(batch.positions).all(1))
    if charged:
        missing = np.full(len(batch), np.nan, np.float32)
        state = {n: missing if getattr(batch, n) is None else getattr(batch, n) for n in ("charge", "spin")}
        good &= np.isfinite(state["charge"]) & np.isfinite(state["spin"])
    plain = StructureBatch(**kept, **state, positions=batch.positions.astype(np.float64)).take(np.flatnonzero(good))
    return _listable(plain, manifest.cutoff)


def _listable(batch: StructureBatch, cutoff: float) -> StructureBatch:
    """Return the structures that have a neighbour list and no two atoms on one point."""
    try:
        count_edges(batch, cutoff)
    except DataError:
        if len(batch) <= 1:
            return batch.take([])
        middle = len(batch) // 2
        halves = (batch.slice(0, middle), batch.slice(middle, len(batch)))
        return StructureBatch.concatenate([_listable(half, cutoff) for half in halves])
    return batch.take(np.flatnonzero(count_edges(batch, _NEAREST) == 0))


def _only(batch: StructureBatch, elements: list[int]) -> NDArray[np.bool_]:
    """Return [S]: whether a structure holds no other elements than these."""
    out = np.ones(len(batch), bool)
    np.logical_and.at(out, batch.structure_of_atom, np.isin(batch.numbers, elements))
    return out
