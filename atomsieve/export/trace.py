"""From the functional ensemble to one graph of plain tensor operations, its backward pass written out."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from atomsieve.export.functional import Functional
from atomsieve.export.interface import Slot

_PRIMES = (101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167, 173, 179, 181, 191, 193, 197, 199, 211)


def example_inputs(functional: Functional) -> tuple[Tensor, ...]:
    """Return inputs to trace with, on the model's device: no size equals another, or any width of the model.

    A tracer takes two equal sizes for one, and a size equal to a fixed width for that width.
    """
    fixed = {n for t in (*functional.parameters(), *functional.buffers()) for n in t.shape}
    free = [p for p in _PRIMES if p not in fixed]
    sizes = {"S": free[0], "N": free[5], "W": free[1], "V": free[2]}
    device = functional.scales.device
    rng = np.random.default_rng(0)
    head = np.zeros(sizes["S"], np.int64)
    structure = np.minimum(np.arange(sizes["N"]), sizes["S"] - 1)
    full: dict[str, np.ndarray] = {
        "numbers": np.ones(sizes["N"], np.uint8),
        "positions": rng.uniform(0, 9, (sizes["N"], 3)),
        "cell": np.tile(9.0 * np.eye(3), (sizes["S"], 1, 1)),
        "structure": structure,
        "neighbors": rng.integers(0, sizes["N"], (sizes["N"], sizes["W"])),
        "shifts": rng.integers(-1, 2, (sizes["N"], sizes["W"], 3)).astype(np.int32),
        "head": head,
        "charge": np.zeros(sizes["S"], np.float32),
        "spin": np.ones(sizes["S"], np.float32),
        "reverse": rng.integers(0, sizes["N"] * sizes["W"], (sizes["N"], sizes["V"])),
    }
    return tuple(torch.from_numpy(full[s.name]).to(device) for s in functional.inputs)


def dynamic_shapes(slots: tuple[Slot, ...]) -> tuple[dict[int, torch.export.Dim], ...]:
    """Return which axes are free, as `torch.export` wants it."""
    free = torch.export.Dim.DYNAMIC
    return tuple({k: free for k, axis in enumerate(s.axes) if isinstance(axis, str)} for s in slots)


@contextlib.contextmanager
def silence_torch() -> Iterator[None]:
    """Hide torch's warnings on its own deprecated parts; trace without its cache of fake tensors.

    With free sizes that cache costs as much time as everything else together.
    """
    with warnings.catch_warnings(), torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield


def trace(functional: Functional, *, core: bool = False) -> fx.GraphModule:
    """Return the graph of a functional ensemble, with free sizes and without autograd.

    core : use only the core operations, which ONNX needs; slower when run by torch.
    """
    table: Any = torch._decomp.core_aten_decompositions() if core else None
    with silence_torch():
        traced = make_fx(functional, tracing_mode="symbolic", _allow_non_fake_inputs=True, decomposition_table=table)(
            *example_inputs(functional)
        )
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced


def export_program(functional: Functional) -> torch.export.ExportedProgram:
    """Return the exported program of a functional ensemble, with all sizes free."""
    with silence_torch():
        return torch.export.export(
            trace(functional),
            example_inputs(functional),
            dynamic_shapes=dynamic_shapes(functional.inputs),
            strict=False,
        )
