"""The loss: scaled errors of energy per atom, forces and stress, normalised over the global batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atomsieve.models import EnsembleOutput
from atomsieve.train.config import LossSection
from atomsieve.train.data.batches import TrainBatch
from atomsieve.train.likelihood import energy_likelihood, force_likelihood, norm


@dataclass(frozen=True)
class LossParts:
    """Losses [K] of the members, or [1] of a shallow ensemble.

    `total` is the differentiated sum; `energy`, `force`, `stress` are its unweighted parts.

    A part is this rank's sum divided by the global number of labels: summed over ranks it is the mean.
    """

    total: Tensor
    energy: Tensor
    force: Tensor
    stress: Tensor

    def stack(self) -> Tensor:
        """Return [4,K] without gradient: total, energy, force, stress."""
        return torch.stack([self.total, self.energy, self.force, self.stress]).detach().double()


def penalty(size: Tensor, rules: LossSection) -> Tensor:
    """Return the penalty of non-negative scaled errors, elementwise.

    huber is delta-normalised: size - delta/2 beyond delta, size**2/(2 delta) below, so it tends to mae for delta -> 0.
    """
    if rules.kind == "mae":
        return size
    if rules.kind == "mse":
        return size**2
    delta = rules.huber_delta
    return torch.where(size > delta, size - 0.5 * delta, size**2 / (2 * delta))


def batch_loss(out: EnsembleOutput, batch: TrainBatch, rules: LossSection) -> LossParts:
    """Return the loss of one rank's share of a global batch.

    Energies: |error per atom| / the source's energy size, mean over structures or atoms. Forces: length of the error
    vector / the source's mean force norm, mean over atoms. Stress: Frobenius norm / the source's size, mean over
    structures.
    Missing labels count nowhere. Members are independent: their losses are summed, so each gets its own gradient.

    A shallow ensemble has one loss: the mean of its members' for energies, that of the mean for forces; and where the
    rules have a likelihood, that of energies, and of forces if the output has those of members.
    """
    if out.shared:
        return _shallow_loss(out, batch, rules)
    members = out.energy.shape[0]
    zero = out.energy.new_zeros(members)
    energy, force, stress = zero, zero, zero
    if batch.n_energy:
        error = (out.energy - batch.energy).abs() / (batch.n_atoms * batch.energy_size)
        mask = batch.has_energy if batch.weight is None else batch.has_energy * batch.weight
        energy = (penalty(error, rules) * mask).sum(1) / batch.n_energy
    if rules.force and batch.n_forces and out.forces is not None:
        length = norm(out.forces - batch.forces) / batch.force_size
        mask = batch.has_forces
        if batch.weight is not None and batch.graph is not None:
            mask = mask * batch.weight[:, batch.graph.structure]
        force = (penalty(length, rules) * mask).double().sum(1) / batch.n_forces
    if rules.stress and batch.n_stress and out.virial is not None:
        length = norm((out.virial - batch.virial).flatten(2)) / batch.virial_size
        mask = batch.has_stress if batch.weight is None else batch.has_stress * batch.weight
        stress = (penalty(length, rules) * mask).sum(1) / batch.n_stress
    total = rules.energy * energy + rules.force * force + rules.stress * stress
    return LossParts(total, energy, force, stress)


def _shallow_loss(out: EnsembleOutput, batch: TrainBatch, rules: LossSection) -> LossParts:
    """Return the loss of a shallow ensemble, every part [1]."""
    zero = out.energy.new_zeros(())
    energy, force, stress = zero, zero, zero
    if batch.n_energy:
        error = (out.energy - batch.energy) / (batch.n_atoms * batch.energy_size)
        each = energy_likelihood(error, rules) if rules.spread_taught else penalty(error.abs(), rules).mean(0)
        if rules.spread_apart:
            each = each + penalty(error.mean(0).abs(), rules)
        energy = (each * batch.has_energy).sum() / batch.n_energy
    if rules.force and batch.n_forces and out.forces is not None:
        vector = (out.forces - batch.forces) / batch.force_size.unsqueeze(1)
        if rules.spread_taught and len(vector) > 1:
            each = force_likelihood(vector, rules, of=len(out.energy))
            if rules.spread_apart:
                each = each + penalty(norm(vector.mean(0)), rules)
        else:
            each = penalty(norm(vector), rules).mean(0)
        force = (each * batch.has_forces).double().sum() / batch.n_forces
    if rules.stress and batch.n_stress and out.virial is not None:
        length = norm((out.virial.mean(0) - batch.virial).flatten(1)) / batch.virial_size
        stress = (penalty(length, rules) * batch.has_stress).sum() / batch.n_stress
    total = rules.energy * energy + rules.force * force + rules.stress * stress
    return LossParts(total.view(1), energy.view(1), force.view(1), stress.view(1))
