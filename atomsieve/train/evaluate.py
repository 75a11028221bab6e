"""Errors of an ensemble on labelled structures, per head, with the baselines a number must beat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atomsieve.models import Ensemble
from atomsieve.train.batches import Labels, Prefetch, TrainBatch, make_batch
from atomsieve.train.config import BatchSection, LossSection
from atomsieve.train.distributed import Team
from atomsieve.train.likelihood import fair_crps
from atomsieve.train.sampler import Sizes, deal, pack
from atomsieve.train.store import Store

FORCE_SAMPLE = 1500
"""Atoms per head whose forces are kept for the parity plot."""


@dataclass
class Evaluation:
    """Predictions on S structures; every array in the order of `index`.

    Attributes
    ----------
    index : [S] catalogue indices; head [S]; n_atoms [S].
    energy : [S] eV residual label (NaN where unknown); energy_members [K,S] eV.
    force_error : [S] eV/Angstrom, summed |component error| of the members' mean; force_error_members [K,S].
    force_size : [S] eV/Angstrom, summed |component| of the labels (error of predicting zero).
    force_spread : [S] eV/Angstrom, mean over atoms of the members' spread (root of the summed component variances).
    has_forces : [S].
    force_sample : per head, [n,2] label and prediction of some components (this rank's structures only).
    """

    index: NDArray[np.int64]
    head: NDArray[np.int64]
    n_atoms: NDArray[np.int64]
    energy: NDArray[np.float64]
    energy_members: NDArray[np.float64]
    force_error: NDArray[np.float64]
    force_error_members: NDArray[np.float64]
    force_size: NDArray[np.float64]
    force_spread: NDArray[np.float64]
    has_forces: NDArray[np.bool_]
    force_sample: dict[int, NDArray[np.float64]]

    @property
    def energy_error(self) -> NDArray[np.float64]:
        """Error of the members' mean, [S] eV per atom."""
        return np.asarray((self.energy_members.mean(0) - self.energy) / np.maximum(self.n_atoms, 1))

    @property
    def energy_spread(self) -> NDArray[np.float64]:
        """Unbiased standard deviation over members, [S] eV per atom; NaN for one member."""
        if len(self.energy_members) < 2:
            return np.full(len(self.index), np.nan)
        return np.asarray(self.energy_members.std(0, ddof=1) / np.maximum(self.n_atoms, 1))


def plan_evaluation(index: NDArray[np.int64], sizes: Sizes, batch: BatchSection) -> list[NDArray[np.int64]]:
    """Cut structures into evaluation batches by atoms."""
    limits = {"atoms": batch.eval_atoms, "structures": None, "edges": None}
    return pack(index, sizes, batch.model_copy(update=limits))


def evaluate(
    ensemble: Ensemble,
    store: Store,
    labels: Labels,
    index: NDArray[np.int64],
    sizes: Sizes,
    batch: BatchSection,
    team: Team,
    progress: Callable[[int, int], None] | None = None,
    *,
    force_spread: bool = True,
) -> Evaluation:
    """Predict the structures `index`, divided over the ranks; every rank gets the whole result.

    force_spread : False spares a shallow ensemble the backward pass for each member: its `force_spread` is then zero,
        and `force_error_members` is of the mean.
    """
    members, dtype = ensemble.members, next(ensemble.parameters()).dtype
    position = np.full(len(store.catalog), -1, np.int64)
    position[index] = np.arange(len(index))
    sums = np.zeros((2 * members + 3, len(index)))
    sample: dict[int, list[NDArray[np.float64]]] = {}
    plan = plan_evaluation(index, sizes, batch)
    apart = range(members) if ensemble.shallow and force_spread else None

    def make(k: int) -> TrainBatch:
        own = deal(plan[k], sizes.cost, team.size)[team.rank]
        return make_batch(store.fetch(own), own, plan[k], labels, ensemble.config, dtype, team.device)

    was_training = ensemble.training
    ensemble.eval()
    with Prefetch(make, len(plan)) as batches:
        for done, item in enumerate(batches):
            if item.graph is not None:
                with torch.no_grad():
                    out = ensemble(item.graph, item.head, item.charge, item.spin, force_members=apart)
                _collect(out, item, sums, position[item.index], sample)
            if progress is not None:
                progress(done + 1, len(plan))
    ensemble.train(was_training)
    total = team.sum_(torch.from_numpy(sums).to(team.device)).cpu().numpy()
    catalog = store.catalog
    kept = {head: np.concatenate(rows) for head, rows in sample.items()}
    return Evaluation(
        index=index,
        head=catalog.head[index].astype(np.int64),
        n_atoms=catalog.n_atoms[index],
        energy=labels.residual[index],
        energy_members=total[:members],
        force_error_members=total[members : 2 * members],
        force_error=total[-3],
        force_size=total[-2],
        force_spread=total[-1] / np.maximum(catalog.n_atoms[index], 1),
        has_forces=labels.has_forces[index],
        force_sample=kept,
    )


def _collect(
    out: Any,
    item: TrainBatch,
    sums: NDArray[np.float64],
    where: NDArray[np.int64],
    sample: dict[int, list[NDArray[np.float64]]],
) -> None:
    """Add one batch's results to the columns `where` of `sums`."""
    assert item.graph is not None
    members, n = out.energy.shape
    structure = item.graph.structure

    def per_structure(values: torch.Tensor) -> NDArray[np.float64]:
        zero = torch.zeros(values.shape[0], n, dtype=torch.float64, device=values.device)
        return np.asarray(zero.index_add(1, structure, values.double()).cpu().numpy())

    sums[:members, where] = out.energy.detach().cpu().numpy()
    forces, mask = out.forces.detach().double(), item.has_forces.double()
    mean = forces.mean(0)
    label = item.forces.double()
    sums[members : 2 * members, where] = per_structure((forces - label).abs().sum(2) * mask)
    rows = [((mean - label).abs().sum(1) * mask), label.abs().sum(1) * mask]
    rows.append(forces.var(0).sum(1).sqrt() if len(forces) > 1 else torch.zeros_like(rows[0]))
    sums[-3:, where] = per_structure(torch.stack(rows))
    pair = torch.stack([label.reshape(-1), mean.reshape(-1)], 1).cpu().numpy()
    use = (item.has_forces > 0).repeat_interleave(3).cpu().numpy()
    atom_head = item.head[structure].repeat_interleave(3).cpu().numpy()
    for head in np.unique(atom_head[use]):
        kept = sum(len(r) for r in sample.get(int(head), []))
        if kept < 3 * FORCE_SAMPLE:
            sample.setdefault(int(head), []).append(pair[use & (atom_head == head)][: 3 * FORCE_SAMPLE - kept])


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """Rank correlation, None where it means nothing (few values, or all alike)."""
    from scipy.stats import spearmanr

    good = np.isfinite(a) & np.isfinite(b)
    if good.sum() < 5 or np.ptp(a[good]) == 0 or np.ptp(b[good]) == 0:
        return None
    return float(spearmanr(a[good], b[good]).statistic)


def head_metrics(result: Evaluation, sources: list[str]) -> dict[str, dict[str, Any]]:
    """Return per head: errors in meV/atom and meV/Angstrom, baselines, ratios and rank correlations.

    energy_mae, energy_member_mae, energy_baseline : meV/atom of the members' mean, of single members, of the element
        references alone.
    force_mae, force_member_mae, force_baseline : meV/Angstrom per component; the baseline predicts zero.
    spread_error_energy, spread_error_force : Spearman correlation, over structures, of spread and |error|.
    """
    out: dict[str, dict[str, Any]] = {}
    for head, name in enumerate(sources):
        own = result.head == head
        if not own.any():
            continue
        known = own & np.isfinite(result.energy)
        error = np.abs(result.energy_error)
        per_atom = np.abs(result.energy) / np.maximum(result.n_atoms, 1)
        single = np.abs(result.energy_members - result.energy) / np.maximum(result.n_atoms, 1)
        row: dict[str, Any] = {"structures": int(own.sum()), "energies": int(known.sum())}
        if known.any():
            row |= {
                "energy_mae": 1e3 * float(error[known].mean()),
                "energy_member_mae": 1e3 * float(single[:, known].mean()),
                "energy_baseline": 1e3 * float(per_atom[known].mean()),
                "spread_error_energy": _spearman(result.energy_spread[known], error[known]),
            }
            row["energy_ratio"] = row["energy_mae"] / max(row["energy_baseline"], 1e-12)
        forced = own & result.has_forces
        if forced.any():
            components = 3 * int(result.n_atoms[forced].sum())
            per_atom_error = result.force_error[forced] / result.n_atoms[forced]
            spread = result.force_spread[forced] if len(result.energy_members) > 1 else np.full(forced.sum(), np.nan)
            row |= {
                "force_mae": 1e3 * float(result.force_error[forced].sum() / components),
                "force_member_mae": 1e3 * float(result.force_error_members[:, forced].sum(1).mean() / components),
                "force_baseline": 1e3 * float(result.force_size[forced].sum() / components),
                "spread_error_force": _spearman(spread, per_atom_error),
            }
            row["force_ratio"] = row["force_mae"] / max(row["force_baseline"], 1e-12)
        out[name] = row
    return out


def write_evaluation(path: Path, result: Evaluation) -> None:
    """Write labels and predictions of a part, for calibration and plots of one's own (arrays only)."""
    np.savez_compressed(
        path,
        head=result.head,
        n_atoms=result.n_atoms,
        energy=result.energy,
        energy_members=result.energy_members,
        force_error=result.force_error,
        force_spread=result.force_spread,
        has_forces=result.has_forces,
    )


def member_scores(result: Evaluation, labels: Labels, rules: LossSection) -> NDArray[np.float64]:
    """Return each member's score [K], smaller is better: the mean over heads of its scaled errors.

    A head's part: energy weight x MAE per atom / energy size + force weight x mean |component| / half the force size.
    """
    return _scores(
        result,
        labels,
        rules,
        np.abs(result.energy_members - result.energy) / result.n_atoms,
        result.force_error_members,
    )


def shallow_score(result: Evaluation, labels: Labels, rules: LossSection) -> NDArray[np.float64]:
    """Return the score [1] of the members together: as `member_scores`, of their mean.

    Where the rules have a likelihood, the fair CRPS of the energies takes the place of their absolute error.
    """
    error = (result.energy_members - result.energy) / result.n_atoms
    score = fair_crps(torch.from_numpy(error)).numpy() if rules.spread_taught else np.abs(error.mean(0))
    return _scores(result, labels, rules, score[None], result.force_error[None])


def _scores(
    result: Evaluation, labels: Labels, rules: LossSection, energy: NDArray[Any], force: NDArray[Any]
) -> NDArray[np.float64]:
    """Return scores [R] from `energy [R,S]` per atom and `force [R,S]` summed over components."""
    heads, scores = np.unique(result.head), np.zeros(len(energy))
    for head in heads:
        own = result.head == head
        known, forced = own & np.isfinite(result.energy), own & result.has_forces
        if known.any() and rules.energy:
            scores += rules.energy * energy[:, known].mean(1) / labels.energy_size[head]
        if forced.any() and rules.force:
            mean = force[:, forced].sum(1) / (3 * result.n_atoms[forced].sum())
            # The mean length of an isotropic vector is twice its mean |component|: the size is of lengths.
            scores += rules.force * mean / (0.5 * labels.force_size[head])
    return scores / max(len(heads), 1)
