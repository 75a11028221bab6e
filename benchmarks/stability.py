"""Stability as the ranking: how well it ranks real candidates, and how fast hulls are looked up.

    python benchmarks/stability.py accuracy gfm/ --head mptrj --phases train.bp --candidates candidates/
    python benchmarks/stability.py speed

accuracy : `wbm_equilibrium` (formation energies at the level of the head are known) and `perovskites_abx3` (another
functional, other references: ranks alone count). The ensemble needs references (`atomsieve references make`). Beside
them the same predictions ranked by energy per atom, and by energy per atom plus two spreads. The truth of "stable" is
the hull of the labels: the phases of `--phases` and the elements that the reference energies imply; stable is below it.
Precision, recall, F1 and the discovery acceleration factor DAF are those of Matbench Discovery (J. Riebesell et al.,
Nat. Mach. Intell. 7, 836 (2025)).

speed : rows per second of processor time against 5,000 phases in 300 chemical systems, in turns with pymatgen, which
builds the phase diagram of each system once and is asked row by row.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    """Print the tables that the command asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    accuracy = verbs.add_parser("accuracy")
    accuracy.add_argument("gfm", type=Path)
    accuracy.add_argument("--head", required=True)
    accuracy.add_argument("--phases", type=Path, required=True)
    accuracy.add_argument("--candidates", type=Path, required=True)
    speed = verbs.add_parser("speed")
    speed.add_argument("--rows", type=int, default=1_000_000)
    speed.add_argument("--peer-rows", type=int, default=300)
    speed.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    if options.verb == "accuracy":
        report_accuracy(options.gfm, options.head, options.phases, options.candidates)
    else:
        report_speed(options.rows, options.peer_rows, options.turns)


# -- accuracy ------------------------------------------------------------------------------------------------------


def predict(gfm: Path, head: str, frames: list[Any]) -> tuple[Any, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return compositions, energies per atom with their spread, and the columns about stability of ASE structures."""
    import torch

    from atomsieve.predict import Predictor
    from atomsieve.stability.columns import compute_columns
    from atomsieve.stability.hull import HullFinder
    from atomsieve.stability.phases import count_compositions, read_references
    from atomsieve.structures import StructureBatch

    torch.set_num_threads(1)
    predictor, references = Predictor.load(gfm, head=head), read_references(gfm, head)
    if references is None:
        raise SystemExit(f"{gfm} holds no references of head {head}; atomsieve references make")
    batch = StructureBatch.from_ase(frames)
    parts = []
    for start in range(0, len(batch), 256):
        part = batch.take(np.arange(start, min(start + 256, len(batch))))
        found = predictor(part, {"energy", "spread", "energy_members"})
        parts.append((found.energy, found.energy_std, found.sigma_energy, found.energy_members.T))
    energy, spread, sigma, members = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    n = batch.counts
    own = {"energy": energy / n, "spread": spread / n}
    apart = ((members - energy[:, None]) / n[:, None]).astype(np.float32)
    compositions = count_compositions(batch.ptr, batch.numbers)
    return compositions, own, compute_columns(HullFinder(references), compositions, energy / n, apart, sigma / spread)


def report_accuracy(gfm: Path, head: str, phases: Path, candidates: Path) -> None:
    """Print the tables of both files."""
    from ase.io import read

    wbm = read(candidates / "wbm_equilibrium.extxyz.gz", ":")
    compositions, own, columns = predict(gfm, head, wbm)
    truth = np.array([atoms.info["ref_formation_energy_per_atom"] for atoms in wbm])
    above = true_distances(wbm, compositions, truth, phases, head)
    known = np.isfinite(columns["energy_above_hull"]) & np.isfinite(above)
    formation = columns["formation_energy"]
    print(f"wbm_equilibrium: {known.sum()} of {len(wbm)} with a hull; {(above[known] < 0).mean():.1%} stable by labels")
    error = np.abs(formation - truth)[known]
    print(f"formation energy: mean absolute error {error.mean():.3f} eV/atom, median {np.median(error):.3f}")
    keys = list_keys(own, columns)
    print("| ranked by | Spearman with formation energy | with distance above hull | precision of the first 100 |")
    print("| --- | --- | --- | --- |")
    for name, key in keys.items():
        first = np.argsort(key[known], kind="stable")[:100]
        hits = (above[known][first] < 0).mean()
        ranks = [rank_correlation(key, true, known) for true in (truth, above)]
        print(f"| {name} | {ranks[0]:.2f} | {ranks[1]:.2f} | {hits:.2f} |")
    print_classes(columns, above, known)
    report_perovskites(gfm, head, candidates)


def list_keys(own: dict[str, np.ndarray], columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the rankings, smallest first."""
    return {
        "energy per atom": own["energy"],
        "energy per atom + 2 spreads": own["energy"] + 2 * own["spread"],
        "formation energy": columns["formation_energy"],
        "energy above hull": columns["energy_above_hull"],
        "p_stable": -columns["p_stable"],
    }


def rank_correlation(key: np.ndarray, truth: np.ndarray, chosen: np.ndarray) -> float:
    """Return Spearman's correlation of the chosen rows."""
    from scipy.stats import spearmanr

    return float(spearmanr(key[chosen], truth[chosen]).statistic)


def true_distances(frames: list[Any], compositions: Any, formation: np.ndarray, phases: Path, head: str) -> np.ndarray:
    """Return the distances of candidates from the hull of the labels: phases, and the elements behind `formation`."""
    from atomsieve.stability.candidates import read_candidates
    from atomsieve.stability.hull import HullFinder
    from atomsieve.stability.phases import Compositions, ReferenceSet, count_compositions
    from atomsieve.structures import open_structures

    content = np.zeros((len(frames), 120))
    for k, atoms in enumerate(frames):
        np.add.at(content[k], atoms.numbers, 1)
    total = content.sum(1)
    energy = np.array([atoms.info["ref_energy"] for atoms in frames])
    pure, *_ = np.linalg.lstsq(content, energy - formation * total, rcond=None)
    held = np.flatnonzero(content.sum(0))
    with open_structures(phases) as reader:
        batch = read_candidates(reader, head)
    labelled = count_compositions(batch.ptr, batch.numbers)
    several = np.flatnonzero(np.diff(labelled.ptr) > 1)
    labelled, per_atom = labelled.take(several), (batch.energy / batch.counts)[several]
    elements = Compositions(np.arange(len(held) + 1), held.astype(np.uint8), np.ones(len(held), np.int64))
    joined = Compositions(
        np.concatenate([elements.ptr, labelled.ptr[1:] + elements.ptr[-1]]),
        np.concatenate([elements.element, labelled.element]),
        np.concatenate([elements.count, labelled.count]),
    )
    n = len(joined)
    truth = ReferenceSet(
        head,
        "",
        "",
        "",
        False,
        joined,
        np.concatenate([pure[held], per_atom]),
        np.zeros((n, 1), np.float32),
        np.ones(n, bool),
        ("",) * n,
        ("data",) * n,
    )
    return HullFinder(truth).measure(compositions, energy / total).above


def print_classes(columns: dict[str, np.ndarray], above: np.ndarray, known: np.ndarray) -> None:
    """Print precision, recall, F1 and DAF of "stable", and how often a chance comes true."""
    stable, chance = above[known] < 0, columns["p_stable"][known]
    print("| called stable | rows | precision | recall | F1 | DAF |\n| --- | --- | --- | --- | --- | --- |")
    for name, called in {
        "energy above hull < 0": columns["energy_above_hull"][known] < 0,
        "p_stable > 0.5": chance > 0.5,
        "p_stable > 0.8": chance > 0.8,
    }.items():
        precision, recall = (stable & called).sum() / max(called.sum(), 1), (stable & called).sum() / stable.sum()
        f1 = 2 * precision * recall / max(precision + recall, 1e-12)
        print(
            f"| {name} | {called.sum()} | {precision:.2f} | {recall:.2f} | {f1:.2f} | {precision / stable.mean():.2f} |"
        )
    print("| p_stable | rows | mean | came true |\n| --- | --- | --- | --- |")
    for low, high in ((0, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1.01)):
        inside = (chance >= low) & (chance < high)
        if inside.any():
            print(
                f"| {low}-{min(high, 1)} | {inside.sum()} | {chance[inside].mean():.2f} | {stable[inside].mean():.2f} |"
            )
    error = np.abs(columns["energy_above_hull"][known] - above[known]) / columns["sigma_energy_above_hull"][known]
    print(f"errors of the distance within 1 sigma {(error < 1).mean():.2f}, within 1.645 {(error < 1.645).mean():.2f}")


def report_perovskites(gfm: Path, head: str, candidates: Path) -> None:
    """Print ranks and hits of the perovskites."""
    from ase.io import read

    frames = read(candidates / "perovskites_abx3.extxyz.gz", ":")
    _, own, columns = predict(gfm, head, frames)
    truth = np.array([atoms.info["ref_formation_energy_per_atom"] for atoms in frames])
    known = np.isfinite(columns["energy_above_hull"])
    best = {n: set(np.flatnonzero(known)[np.argsort(truth[known], kind="stable")[:n]].tolist()) for n in (50, 200)}
    print(f"\nperovskites_abx3: {known.sum()} of {len(frames)} with a hull")
    print(
        "| ranked by | Spearman | first 50 in the true best 50 | in the true best 200 | mean of the first 50, eV/atom |"
    )
    print("| --- | --- | --- | --- | --- |")
    for name, key in list_keys(own, columns).items():
        first = np.flatnonzero(known)[np.argsort(key[known], kind="stable")[:50]]
        hits = [len(best[n] & set(first.tolist())) for n in best]
        rank = rank_correlation(key, truth, known)
        print(f"| {name} | {rank:.2f} | {hits[0]} | {hits[1]} | {truth[first].mean():.3f} |")
    print(f"| (the true best) | | 50 | 50 | {np.sort(truth[known])[:50].mean():.3f} |")


# -- speed ---------------------------------------------------------------------------------------------------------


def report_speed(rows: int, peer_rows: int, turns: int) -> None:
    """Print rows per second of processor time, here and by pymatgen."""
    from atomsieve.stability.columns import compute_columns
    from atomsieve.stability.hull import HullFinder

    references, structures = make_problem(rows)
    compositions, energy, members = structures
    factor = np.ones(rows)
    rates, peers = [], []
    for turn in range(turns):
        start = time.process_time()
        compute_columns(HullFinder(references), compositions, energy, members, factor)
        rates.append(rows / (time.process_time() - start))
        peers.append(time_pymatgen(references, compositions, energy, peer_rows, turn))
    mine, theirs, alone = float(np.median(rates)), *np.median(np.array(peers), axis=0).tolist()
    print(f"{len(references):,} phases, 300 chemical systems, {rows:,} rows, {references.members} members, one core")
    print(f"here, hulls included: {mine:,.0f} rows/s (all columns with errors)")
    print(f"pymatgen, row by row: {theirs:,.0f} rows/s with its diagrams, {alone:,.0f} rows/s once they are built")
    print(f"ratio: {mine / theirs:,.0f}, without building the diagrams {mine / alone:,.0f}")


def make_problem(rows: int, phases: int = 5000, systems: int = 300) -> tuple[Any, Any]:
    """Return a reference set of random phases, and rows: compositions, energies and members."""
    from atomsieve.stability.phases import ReferenceSet, count_compositions

    rng = np.random.default_rng(0)
    pool = np.arange(3, 84)
    chosen = [np.sort(rng.choice(pool, rng.choice([2, 3, 3, 3, 4]), replace=False)) for _ in range(systems)]
    pure = np.concatenate([rng.normal(-5, 2, 120)])

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        counts, numbers = [], []
        for system in rng.integers(0, systems, n).tolist():
            elements = chosen[system]
            amount = rng.integers(1, 7, len(elements))
            numbers.append(np.repeat(elements, amount))
            counts.append(int(amount.sum()))
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), np.concatenate(numbers).astype(np.uint8)

    ptr, numbers = draw(phases - len(pool))
    ptr = np.concatenate([np.arange(len(pool)), ptr + len(pool)])
    of_phases = count_compositions(ptr, np.concatenate([pool, numbers]).astype(np.uint8))
    ideal = np.add.reduceat(pure[np.concatenate([pool, numbers])], ptr[:-1]) / np.diff(ptr)
    n, k = len(of_phases), 8
    references = ReferenceSet(
        "head",
        "",
        "",
        "",
        False,
        of_phases,
        ideal - np.where(np.arange(n) < len(pool), 0, rng.gamma(2, 0.2, n)),
        rng.normal(0, 0.05, (n, k)).astype(np.float32),
        np.ones(n, bool),
        ("",) * n,
        ("data",) * n,
    )
    ptr, numbers = draw(min(rows, 20_000))
    compositions = count_compositions(ptr, numbers)
    compositions = compositions.take(np.arange(rows) % len(compositions))
    return references, (compositions, rng.normal(-5, 2, rows), rng.normal(0, 0.05, (rows, k)).astype(np.float32))


def time_pymatgen(references: Any, compositions: Any, energy: np.ndarray, rows: int, turn: int) -> tuple[float, float]:
    """Return rows per second of pymatgen for rows of few systems: with the building of its diagrams, and without."""
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
    from pymatgen.core import Composition, Element

    def entry(of: Any, k: int, per_atom: float) -> PDEntry:
        own = slice(int(of.ptr[k]), int(of.ptr[k + 1]))
        amounts = {Element.from_Z(int(z)): int(n) for z, n in zip(of.element[own], of.count[own], strict=True)}
        return PDEntry(Composition(amounts), per_atom * sum(amounts.values()))

    phases = [entry(references.compositions, k, e) for k, e in enumerate(references.energy.tolist())]
    known = [(frozenset(p.composition.elements), p) for p in phases]
    asked = [entry(compositions, k, float(energy[k])) for k in range(turn * rows, (turn + 1) * rows)]
    diagrams: dict[Any, PhaseDiagram] = {}
    start = time.process_time()
    for row in asked:
        system = frozenset(row.composition.elements)
        if system not in diagrams:
            diagrams[system] = PhaseDiagram([p for held, p in known if held <= system])
    built = time.process_time()
    for row in asked:
        diagrams[frozenset(row.composition.elements)].get_e_above_hull(row, allow_negative=True)
    done = time.process_time()
    # diagrams are built once for each system, however many rows there are: their time is shared by a million
    share = (built - start) / len(diagrams) * 300 / 1_000_000
    return 1 / (share + (done - built) / rows), rows / (done - built)


if __name__ == "__main__":
    main()
