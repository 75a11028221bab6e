"""Fit of a domain (`HeadDomain`) to the structures that a head was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atomsieve.graphs import Graph, build_graph
from atomsieve.models.ensemble import Ensemble
from atomsieve.structures import StructureBatch
from atomsieve.structures.conversion.split import group_by_formula
from atomsieve.uncertainty.domain import HeadDomain, find_pair_limits, pool_distances
from atomsieve.uncertainty.matter import MatterSample, fit_matter
from atomsieve.uncertainty.radii import BOND, SIZE, SUMS

AXES = 16
LANDMARKS = 1024
FLOOR = 1e-4
"""Part of the largest variance below which a direction of the features counts as noise."""
QUANTILE = 0.975
"""Share of the structures kept from the fit that lies within the limit."""
CONTACT_QUANTILE = 0.1
FEW = 0.04
"""Share of the structures kept from the fit that may have an unseen pair, before more relatives are allowed."""
KIN = (0, 1, 2, 3, 4, 6, 8, 12)
EXPECTED = (5.0, 10.0, 20.0, 40.0, 1e9)
"""A pair that chance puts into 5 structures is in none with a probability of 0.7 % (Poisson)."""
CLOSER, LEAST_CLOSER = 0.97, 0.5
"""Largest and smallest part of the shortest distance seen that is accepted."""
MOST_FITTED, MOST_ATOMS = 3000, 60_000
MOST_PAIRED = 50_000
FEWEST_HELD = 20
FEWEST_FITTED = 10
AT_ONCE = 100  # structures in a batch
ROUNDS = 8  # of Lloyd's algorithm
_CODE = 128  # a pair (a, b) of elements has the code a * _CODE + b

Fetch = Callable[[NDArray[np.int64]], StructureBatch]


@dataclass(frozen=True)
class PairsSeen:
    """Pairs of elements that were neighbours: [P,2], the shortest distance [P] and the number of structures [P]."""

    pairs: NDArray[np.uint8]
    closest: NDArray[np.float32]
    structures: NDArray[np.int32]


def find_pairs(graph: Graph) -> PairsSeen:
    """Return the pairs of elements that are neighbours in a graph."""
    numbers = graph.numbers
    one, two = numbers[graph.neighbors.sender], numbers[graph.neighbors.receiver]
    half = one <= two
    code = (one * _CODE + two)[half].cpu().numpy()
    length = torch.linalg.vector_norm(graph.vec[half].double(), dim=1).cpu().numpy()
    home = graph.structure[graph.neighbors.receiver[half]].cpu().numpy()
    codes, which = np.unique(code, return_inverse=True)
    closest = np.full(len(codes), np.inf)
    np.minimum.at(closest, which, length)
    once = np.unique(which * np.int64(graph.n_structures + 1) + home)
    structures = np.bincount(once // (graph.n_structures + 1), minlength=len(codes))
    return PairsSeen(_pairs(codes), closest.astype(np.float32), structures.astype(np.int32))


def join_pairs(found: list[PairsSeen]) -> PairsSeen:
    """Merge the pairs of several batches."""
    pairs = np.concatenate([f.pairs for f in found]) if found else np.zeros((0, 2), np.uint8)
    codes, which = np.unique(pairs[:, 0].astype(np.int64) * _CODE + pairs[:, 1], return_inverse=True)
    closest, structures = np.full(len(codes), np.inf, np.float32), np.zeros(len(codes), np.int64)
    if len(codes):
        np.minimum.at(closest, which, np.concatenate([f.closest for f in found]))
        np.add.at(structures, which, np.concatenate([f.structures for f in found]))
    return PairsSeen(_pairs(codes), closest, np.minimum(structures, np.iinfo(np.int32).max).astype(np.int32))


def _pairs(codes: NDArray[np.int64]) -> NDArray[np.uint8]:
    return np.stack([codes // _CODE, codes % _CODE], axis=1).astype(np.uint8)


def usual_contact(seen: PairsSeen) -> float:
    """Return the distance over the sum of covalent radii that only a tenth of the pairs falls below at its closest.

    Only pairs that were bonded count; 0 if there are none.
    """
    one, two = seen.pairs.T.astype(int)
    ratio = seen.closest / SUMS[one, two]
    bonded = ratio[ratio < BOND]
    return float(np.quantile(bonded, CONTACT_QUANTILE)) if len(bonded) else 0.0


@torch.no_grad()
def encode(encoder: Ensemble, batch: StructureBatch, graph: Graph) -> NDArray[np.float32]:
    """Return the scalars [N,F] that the first member's encoder gives each atom."""
    index = torch.zeros(graph.n_structures, dtype=torch.int64, device=graph.numbers.device)
    charge = spin = None
    if encoder.config.charge_spin:
        assert batch.charge is not None and batch.spin is not None
        charge, spin = (torch.from_numpy(a).to(index.device) for a in (batch.charge, batch.spin))
    out = encoder(graph, index, charge, spin, forces=False)
    found: NDArray[np.float32] = out.features[0].float().cpu().numpy()
    return found


def _batches(rows: NDArray[np.int64], fetch: Fetch, cutoff: float, max_neighbors: int | None = None) -> Iterator[tuple]:
    """Yield batches of structures with atoms, and their graphs."""
    for start in range(0, len(rows), AT_ONCE):
        batch = fetch(rows[start : start + AT_ONCE])
        if batch.n_atoms:
            yield batch, build_graph(batch, cutoff, max_neighbors=max_neighbors)


def fit_head(
    encoder: Ensemble,
    fetch: Fetch,
    rows: NDArray[np.int64],
    held: NDArray[np.int64] | None = None,
) -> HeadDomain | None:
    """Fit the domain of one head; None with fewer than ten structures.

    encoder : any ensemble whose first member is the ensemble's own, in float32, on the CPU.
    fetch : gives the structures with the indices asked for.
    rows : indices of the training structures; held : of structures that were not trained on and set the limit. With
        fewer than 20 of them a tenth of the compositions (of the structures, where there are few compositions) is
        kept from the fit for it.
    """
    rng = np.random.default_rng([0, len(rows)])
    if len(rows) < FEWEST_FITTED:
        return None
    cutoff = encoder.config.cutoff
    rows = rng.permutation(rows)[:MOST_PAIRED]
    trained_on_held = held is None or len(held) < FEWEST_HELD
    if held is None or trained_on_held:
        few, held = _hold_back(rows[: MOST_FITTED + MOST_FITTED // 10], fetch, rng)
        rows = np.concatenate([few, rows[MOST_FITTED + MOST_FITTED // 10 :]])
    seen, elements = _count_pairs(rows, fetch, cutoff)
    numbers, features, _, used, sample = _features(encoder, rows[:MOST_FITTED], fetch)
    if len(numbers) == 0:
        return None
    projection = _whiten(numbers, features)
    owner, landmarks = _landmarks(numbers, features @ projection, rng)
    domain = HeadDomain(
        **_elements(elements, len(rows)),
        **vars(seen),
        contact=usual_contact(seen),
        kin=0,
        expected=EXPECTED[-1],
        closer=CLOSER,
        projection=projection,
        landmarks=landmarks,
        owner=owner,
        limit=1.0,
        fitted=used,
        held=0,
    )
    held = rng.permutation(held)[:MOST_FITTED]
    domain = _with_pair_rules(domain, held, fetch, cutoff)
    numbers, features, ptr, used, others = _features(encoder, held, fetch)
    known = np.isin(numbers, owner)  # an element of its own is a reason of its own
    distances = pool_distances(np.where(known, domain.atom_distances(numbers, features), 0.0), ptr)
    rank = min(int(np.ceil((len(distances) + 1) * QUANTILE)), len(distances))
    limit = float(np.sort(distances)[rank - 1]) if rank else 0.0
    domain = replace(domain, limit=max(limit, 1e-3), held=used, matter=fit_matter(sample, others, cutoff))
    if trained_on_held:  # the limits are found; now all that was trained on counts as seen
        more, holding = _count_pairs(held, fetch, cutoff)
        counts = _elements(elements + holding, len(rows) + len(held))
        domain = replace(domain, **counts, **vars(join_pairs([seen, more])))
    return domain


def _elements(structures: NDArray[np.int64], of: int) -> dict[str, Any]:
    """Return the fields of the elements from the number of structures [256] that hold each."""
    elements = np.flatnonzero(structures)
    return {"elements": elements.astype(np.uint8), "seen_in": structures[elements].astype(np.int32), "paired": of}


def _count_pairs(rows: NDArray[np.int64], fetch: Fetch, cutoff: float) -> tuple[PairsSeen, NDArray[np.int64]]:
    """Return the pairs in some structures, and how many of them hold each element, [256]."""
    found, elements = [], np.zeros(256, np.int64)
    for batch, graph in _batches(np.sort(rows), fetch, cutoff):
        found.append(find_pairs(graph))
        elements += np.bincount(np.unique(batch.structure_of_atom * 256 + batch.numbers) % 256, minlength=256)
    return join_pairs(found), elements


def _with_pair_rules(domain: HeadDomain, held: NDArray[np.int64], fetch: Fetch, cutoff: float) -> HeadDomain:
    """Return the domain with rules such that few of the structures kept from the fit have an unseen pair or contact.

    First `expected` is raised until it alone marks few enough, then `kin`. Structures with elements that the fit has
    not seen do not count; they are outside the domain in any case.
    """
    known = np.zeros(256, bool)
    known[domain.elements] = True
    edges = []
    structures = 0
    for batch, graph in _batches(held, fetch, cutoff):
        strange = np.bincount(batch.structure_of_atom, ~known[batch.numbers], len(batch)) > 0
        home = graph.structure[graph.neighbors.receiver].cpu().numpy()
        one, two = (graph.numbers[k].cpu().numpy() for k in (graph.neighbors.sender, graph.neighbors.receiver))
        length = torch.linalg.vector_norm(graph.vec, dim=1).cpu().numpy()
        use = ~strange[home] & (one <= two) & (length < 2 * BOND * SUMS[one, two])
        edges.append((home[use] + structures, one[use] * SIZE + two[use], length[use]))
        structures += len(batch)
    if not edges:
        return domain
    home, code, length = (np.concatenate(columns) for columns in zip(*edges, strict=True))

    def share_marked(tried: HeadDomain) -> float:
        return len(np.unique(home[length < find_pair_limits(tried)[0].ravel()[code]])) / structures

    widest = replace(domain, kin=KIN[-1])
    choices = [replace(widest, expected=expected) for expected in EXPECTED]
    domain = replace(domain, expected=next((c for c in choices if share_marked(c) <= FEW / 2), choices[-1]).expected)
    choices = [replace(domain, kin=kin) for kin in KIN]
    domain = next((c for c in choices if share_marked(c) <= FEW), choices[-1])
    least = np.full(structures, np.inf)
    np.minimum.at(least, home, length / find_pair_limits(domain)[1].ravel()[code])
    part = np.sort(least)[int((1.0 - QUANTILE) * structures)]
    return replace(domain, closer=float(np.clip(part - 1e-6, LEAST_CLOSER, CLOSER)))


def _hold_back(
    rows: NDArray[np.int64], fetch: Fetch, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide shuffled rows into nine tenths and at most one tenth, by composition where there are at least ten.

    A composition that by itself is more than a tenth is divided by structure.
    """
    group = group_by_formula(fetch(rows))
    sizes = np.bincount(group)
    most = len(rows) // 10
    apart = (sizes > most)[group] | (len(sizes) < 10)
    group = np.where(apart, len(sizes) + np.arange(len(rows)), group)
    names, sizes = np.unique(group, return_counts=True)
    if len(names) == len(rows):  # single structures, shuffled already
        return rows[most:], rows[:most]
    taken, room = [], most
    for k in rng.permutation(len(names)).tolist():
        if sizes[k] <= room:
            taken.append(k)
            room -= sizes[k]
    chosen = np.isin(group, names[taken])
    return rows[~chosen], rows[chosen]


def _features(
    encoder: Ensemble, rows: NDArray[np.int64], fetch: Fetch
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64], int, MatterSample]:
    """Return numbers [N], features [N,F], ptr [S+1], S and neighbours of the first rows, up to about `MOST_ATOMS`."""
    numbers, features, counts = [np.zeros(0, np.uint8)], [np.zeros((0, encoder.config.hidden), np.float32)], []
    total, samples = 0, []
    config = encoder.config
    for batch, graph in _batches(rows, fetch, config.cutoff, config.max_neighbors):
        numbers.append(batch.numbers)
        features.append(encode(encoder, batch, graph))
        counts.append(batch.counts)
        samples.append(MatterSample.measure(batch, graph))
        total += batch.n_atoms
        if total > MOST_ATOMS:
            break
    sizes = np.concatenate(counts) if counts else np.zeros(0, np.int64)
    ptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return np.concatenate(numbers), np.concatenate(features), ptr, len(sizes), MatterSample.join(samples)


def _whiten(numbers: NDArray[np.uint8], features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the projection [F,D] that gives the scatter around the elements' means unit size in its main axes."""
    elements, which, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    sums = np.zeros((len(elements), features.shape[1]))
    np.add.at(sums, which, features.astype(np.float64))
    scatter = features - (sums / counts[:, None])[which]
    variance, axes = np.linalg.eigh(scatter.T @ scatter / max(len(scatter), 1))
    main = np.argsort(-variance)[:AXES]
    size = np.sqrt(np.maximum(variance[main], 0.0) + FLOOR * max(variance[main[0]], 1e-12))
    return np.asarray(axes[:, main] / size, np.float32)


def _landmarks(
    numbers: NDArray[np.uint8], place: NDArray[np.float32], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return owners [M] and landmarks [M,D]: k-means centres of each element's atoms, more for frequent elements."""
    elements, counts = np.unique(numbers, return_counts=True)
    share = np.sqrt(counts) / np.sqrt(counts).sum()
    owners, centres = [], []
    for element, count, part in zip(elements.tolist(), counts.tolist(), share.tolist(), strict=True):
        own = place[numbers == element]
        own = own[rng.permutation(count)[:8000]]
        k = max(1, min(round(LANDMARKS * part), (count + 3) // 4))
        centres.append(k_means(own, k, rng))
        owners.append(np.full(len(centres[-1]), element, np.uint8))
    return np.concatenate(owners), np.concatenate(centres).astype(np.float32)


def k_means(points: NDArray[np.float32], k: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return k centres of points [N,D] after `ROUNDS` rounds of Lloyd's algorithm from random points."""
    centres = points[rng.choice(len(points), k, replace=False)].copy()
    for _ in range(ROUNDS):
        nearest = ((centres**2).sum(1) - 2 * points @ centres.T).argmin(1)
        counts = np.bincount(nearest, minlength=k)
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, points)
        centres = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centres).astype(np.float32)
    return centres
