"""Likelihoods that train the spread of a shallow ensemble to the size of the error of its mean.

crps: the fair score of the members as a sample (Ferro, Q. J. R. Meteorol. Soc. 140, 1917, 2014, eq. 6), for vectors the
energy score of Gneiting and Raftery (J. Am. Stat. Assoc. 102, 359, 2007, eq. 22). Its expected value does not depend
on how many members are drawn. In the limit of members that agree it is their mean absolute error.

nll: minus the log likelihood of a Gaussian with the members' mean and unbiased variance (Kellner and Ceriotti, Mach.
Learn.: Sci. Technol. 5, 035006, 2024, eq. 6); the three components of a force share one variance, so that the loss
does not depend on how the structure is turned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atomsieve.train.config import LossSection


def norm(vector: Tensor) -> Tensor:
    """Length over the last axis, with a gradient of zero (not NaN) at zero."""
    square = (vector * vector).sum(-1)
    safe = torch.where(square > 0, square, torch.ones_like(square))
    return torch.where(square > 0, safe.sqrt(), torch.zeros_like(square))


def energy_likelihood(error: Tensor, rules: LossSection) -> Tensor:
    """Return the score [S] of scaled errors [K,S] of all members."""
    if rules.likelihood == "crps":
        return fair_crps(error)
    return gaussian_nll(error.unsqueeze(2), rules.variance_floor, apart=rules.spread_apart)


def force_likelihood(error: Tensor, rules: LossSection, of: int) -> Tensor:
    """Return the score [N] of scaled errors [M,N,3] of members drawn from `of`."""
    if rules.likelihood == "crps":
        return fair_energy_score(error)
    return gaussian_nll(error, rules.variance_floor, drawn=error.shape[0] < of, apart=rules.spread_apart)


def fair_crps(error: Tensor) -> Tensor:
    """Return the fair CRPS [S] of errors [K,S]: mean |e_k| less half the mean |e_k - e_l| over pairs."""
    members = error.shape[0]
    rank = torch.arange(1 - members, members, 2, device=error.device, dtype=error.dtype)
    # the sum over pairs k < l of |e_k - e_l|, from the sorted errors
    apart = (rank.unsqueeze(1) * error.sort(dim=0).values).sum(0)
    return error.abs().mean(0) - apart / (members * (members - 1))


def fair_energy_score(error: Tensor) -> Tensor:
    """Return the fair energy score [N] of error vectors [M,N,3]: as `fair_crps`, with lengths for absolute values."""
    members = error.shape[0]
    first, second = torch.triu_indices(members, members, 1, device=error.device)
    apart = norm(error[first] - error[second]).sum(0)
    return norm(error).mean(0) - apart / (members * (members - 1))


def gaussian_nll(error: Tensor, floor: float, *, drawn: bool = False, apart: bool = False) -> Tensor:
    """Return the negative log likelihood per component [N], a constant left out, of errors [M,N,D].

    floor : added to the variance that the D components share.
    drawn : the M members are a sample of more. The mean of 1 / (sample variance) over samples exceeds 1 / variance by
        d / (d - 2) with d = D (M - 1) degrees of freedom, which would teach too large a spread: that is taken off.
    apart : the variance alone gets a gradient, the mean none.
    """
    members, _, components = error.shape
    variance = error.var(0).mean(1) + floor
    freedom = components * (members - 1)
    fair = (freedom - 2) / freedom if drawn else 1.0
    mean = error.mean(0).detach() if apart else error.mean(0)
    return 0.5 * (variance.log() + fair * mean.pow(2).mean(1) / variance)
