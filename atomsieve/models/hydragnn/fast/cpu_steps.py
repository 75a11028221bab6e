"""The compiled steps of HydraGNN's model on a CPU, under the names and arguments that the GPU's have too."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from atomsieve.native import kernels


def cpu_available() -> bool:
    """Return whether the compiled kernels are there."""
    library = kernels()
    return library is not None and hasattr(library, "hydragnn_transpose")


class CpuSteps:
    """The compiled steps of a CPU, in FP32 or FP64."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._suffix = "f64" if dtype == torch.float64 else "f32"

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(name)
        typed = "" if name == "transpose" else f"_{self._suffix}"
        function = getattr(kernels(), f"hydragnn_{name}{typed}")
        return lambda *arguments: function(*(_as_argument(x) for x in arguments))


def _as_argument(x: Tensor | float | None) -> ctypes.c_void_p | ctypes.c_int64 | ctypes.c_double:
    if isinstance(x, int):
        return ctypes.c_int64(x)
    if isinstance(x, float):
        return ctypes.c_double(x)
    return ctypes.c_void_p(x.data_ptr() if x is not None else None)
