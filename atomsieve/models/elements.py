"""Element embeddings that start from the periodic table.

Neighbours in the table behave alike. Embeddings that start as random mixtures of smooth functions of group, period,
number of f electrons and covalent radius let a network transfer what it learns from one element to its neighbours;
with few structures per element this decides how well unseen compositions are predicted. Training changes them freely.
"""

from __future__ import annotations

import numpy as np
import torch
from ase.data import covalent_radii
from numpy.typing import NDArray
from torch import Tensor, nn

from atomsieve.models.layers import Seeds

MAX_NUMBER = 118
_NOBLE = (0, 2, 10, 18, 36, 54, 86, 118)
OWN = 0.2
"""Part of an embedding's variance that is the element's own at the start."""


def place(number: int) -> tuple[int, int, int]:
    """Return group (1-18), period (1-7) and number of f electrons counted along the row (0-15) of an element.

    Lanthanides and actinides count as group 3.
    """
    period = next(p for p in range(1, 8) if number <= _NOBLE[p])
    column, length = number - _NOBLE[period - 1], _NOBLE[period] - _NOBLE[period - 1]
    if length == 2:
        return (1 if column == 1 else 18), period, 0
    if column <= 2:
        return column, period, 0
    if length == 8:
        return column + 10, period, 0
    if length == 18:
        return column, period, 0
    return (3, period, column - 2) if column <= 17 else (column - 14, period, 0)


def _bumps(values: NDArray[np.float64], centres: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    return np.exp(-0.5 * ((values[:, None] - centres) / width) ** 2)


def element_features() -> NDArray[np.float64]:
    """Return smooth features of the elements 1 to 118, [118,D], each with mean zero."""
    places = np.array([place(z) for z in range(1, MAX_NUMBER + 1)], np.float64)
    features = np.concatenate(
        [
            _bumps(places[:, 0], np.arange(1.0, 19.0), 1.2),
            _bumps(places[:, 1], np.arange(1.0, 8.0), 0.7),
            _bumps(places[:, 2], np.arange(0.0, 16.0, 3.0), 2.5),
            _bumps(covalent_radii[1 : MAX_NUMBER + 1], np.linspace(0.3, 2.6, 10), 0.2),
        ],
        axis=1,
    )
    return np.asarray(features - features.mean(0))


def element_embedding(width: int, seeds: Seeds) -> nn.Parameter:
    """Return embeddings [K,119,width] with unit variance over elements; row 0 is no element."""
    features = torch.from_numpy(element_features())
    members: list[Tensor] = []
    for generator in seeds.generators:
        common = features @ torch.randn(features.shape[1], width, generator=generator, dtype=torch.float64)
        own = torch.randn(MAX_NUMBER, width, generator=generator, dtype=torch.float64)
        mixed = (1 - OWN) ** 0.5 * common / common.std() + OWN**0.5 * own
        members.append(torch.cat([mixed.new_zeros(1, width), mixed]))
    return nn.Parameter(torch.stack(members).float())
