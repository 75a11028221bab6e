"""The data that the runs of a training share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atomsieve.train.config import TrainConfig
from atomsieve.train.data.batches import Labels
from atomsieve.train.data.sampler import Sizes
from atomsieve.train.data.store import Store


@dataclass(frozen=True)
class Material:
    """Structures, labels and sizes, and the rows of the catalogue that train and validate; shared by all runs.

    Attributes
    ----------
    train, val : rows of the catalogue. bootstrap : [K,S] float32, weight of each structure for each member, if any.
    """

    config: TrainConfig
    store: Store
    labels: Labels
    sizes: Sizes
    train: NDArray[np.int64]
    val: NDArray[np.int64]
    bootstrap: NDArray[np.float32] | None = None
