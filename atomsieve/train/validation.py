"""Validation by the network that is being trained: predictions of labelled structures, and the scores of members."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atomsieve.models import Ensemble
from atomsieve.train.config import BatchSection, LossSection
from atomsieve.train.data.batches import Labels, Prefetch, TrainBatch, make_batch
from atomsieve.train.data.sampler import Sizes, deal, pack
from atomsieve.train.data.store import Store
from atomsieve.train.distributed import ProcessGroup
from atomsieve.train.likelihood import fair_crps


@dataclass
class Validation:
    """Predictions on S structures; every array in the order of `index`.

    Attributes
    ----------
    index : [S] catalogue indices; head [S]; n_atoms [S].
    energy : [S] eV residual label (NaN where unknown); energy_members [K,S] eV.
    force_error : [S] eV/Angstrom, summed |component error| of the members' mean; force_error_members [K,S].
    force_size : [S] eV/Angstrom, summed |component| of the labels (error of predicting zero).
    force_spread : [S] eV/Angstrom, mean over atoms of the members' spread (root of the summed component variances).
    has_forces : [S].
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


def plan_validation(index: NDArray[np.int64], sizes: Sizes, batch: BatchSection) -> list[NDArray[np.int64]]:
    """Cut structures into batches by atoms."""
    limits = {"atoms": batch.eval_atoms, "structures": None, "edges": None}
    return pack(index, sizes, batch.model_copy(update=limits))


def validate(
    ensemble: Ensemble,
    store: Store,
    labels: Labels,
    index: NDArray[np.int64],
    sizes: Sizes,
    batch: BatchSection,
    group: ProcessGroup,
    progress: Callable[[int, int], None] | None = None,
    *,
    force_spread: bool = True,
) -> Validation:
    """Predict the structures `index`, divided over the ranks; every rank gets the whole result.

    force_spread : False spares a shallow ensemble the backward pass for each member: its `force_spread` is then zero,
        and `force_error_members` is of the mean.
    """
    members, dtype = ensemble.members, next(ensemble.parameters()).dtype
    position = np.full(len(store.catalog), -1, np.int64)
    position[index] = np.arange(len(index))
    sums = np.zeros((2 * members + 3, len(index)))
    plan = plan_validation(index, sizes, batch)
    force_members = range(members) if ensemble.shallow and force_spread else None

    def make(k: int) -> TrainBatch:
        own = deal(plan[k], sizes.cost, group.size)[group.rank]
        return make_batch(store.fetch(own), own, plan[k], labels, ensemble.config, dtype, group.device)

    was_training = ensemble.training
    ensemble.eval()
    with Prefetch(make, len(plan)) as batches:
        for done, item in enumerate(batches):
            if item.graph is not None:
                with torch.no_grad():
                    out = ensemble(item.graph, item.head, item.charge, item.spin, force_members=force_members)
                _collect(out, item, sums, position[item.index])
            if progress is not None:
                progress(done + 1, len(plan))
    ensemble.train(was_training)
    total = group.all_reduce_sum(torch.from_numpy(sums).to(group.device)).cpu().numpy()
    catalog = store.catalog
    return Validation(
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
    )


def _collect(
    out: Any,
    item: TrainBatch,
    sums: NDArray[np.float64],
    where: NDArray[np.int64],
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


def member_scores(result: Validation, labels: Labels, rules: LossSection) -> NDArray[np.float64]:
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


def shallow_score(result: Validation, labels: Labels, rules: LossSection) -> NDArray[np.float64]:
    """Return the score [1] of the members together: as `member_scores`, of their mean.

    Where the rules have a likelihood, the fair CRPS of the energies takes the place of their absolute error.
    """
    error = (result.energy_members - result.energy) / result.n_atoms
    score = fair_crps(torch.from_numpy(error)).numpy() if rules.spread_taught else np.abs(error.mean(0))
    return _scores(result, labels, rules, score[None], result.force_error[None])


def _scores(
    result: Validation, labels: Labels, rules: LossSection, energy: NDArray[Any], force: NDArray[Any]
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
