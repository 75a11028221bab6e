"""Tensors in and out of Triton's Python backend, by DLPack both ways.

numpy's C interface inside the backend of older servers does not fit numpy 2: it gives wrong values without an error.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray


def pack_tensor(values: NDArray[Any]) -> Any:
    """Return an array as a torch tensor [1,...] that the backend's DLPack reader takes.

    The reader requires contiguous rows, and for an axis of length 0 the strides of a contiguous array. Torch owns the
    memory, since the backend does not release numpy's capsules as numpy expects.
    """
    import torch

    shape, strides, step = (1, *values.shape), [], 1
    for length in reversed(shape):
        strides.append(step)
        step *= length
    flat = torch.from_numpy(values.reshape(-1).copy()) if values.size else torch.zeros(1, dtype=torch_dtype(values))
    return torch.as_strided(flat, shape, strides[::-1])


def torch_dtype(values: NDArray[Any]) -> Any:
    """Return the torch dtype of a numpy array."""
    import torch

    return torch.from_numpy(np.zeros(1, values.dtype)).dtype


def json_tensor(value: Any) -> NDArray[np.uint8]:
    """Return a value as the bytes [B] of its JSON text."""
    return np.frombuffer(json.dumps(value, default=str).encode(), np.uint8).copy()


def probe_dlpack(pb: Any) -> None:
    """Pass arrays through the backend's tensors and compare them.

    Raises
    ------
    RuntimeError
        if an array comes back changed: then no answer of this server can be trusted.
    """
    for values in (np.arange(6.0).reshape(1, 2, 3), np.arange(5, dtype=np.uint8)[None], np.zeros((1, 0), np.int64)):
        back = np.from_dlpack(pb.Tensor.from_dlpack("probe", pack_tensor(values[0])))
        if back.shape != values.shape or back.dtype != values.dtype or not np.array_equal(back, values):
            raise RuntimeError(
                f"this server's Python backend changes tensors: {values.tolist()} became {back.tolist()}"
            )
