"""Checkpoints: one safetensors file each, its header holding the run's state as JSON; replaced whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from atomsieve.errors import DataError
from atomsieve.runs.output_files import atomic_draft
from atomsieve.train.muon import JointOptimizer
from atomsieve.train.optim import RunningMean

FORMAT = "atomsieve-checkpoint-1"


@dataclass
class Progress:
    """Where a run stands.

    Attributes
    ----------
    step : optimiser steps done; epoch, position : the next global batch is `position` of epoch `epoch`.
    elapsed : wall seconds of training so far, over all starts; processor : seconds of processor time of all ranks.
    structures, atoms : seen so far, over all ranks.
    best : best score of each member; since_best : evaluations without any progress; plateau : factor reached.
    skipped : steps left out because a loss was not finite; skipped_in_row : the last ones of them.
    history : scores of all evaluations.
    finished : the run came to its end.
    part : of the budget (0..1) that was used when the last step began, alike on all ranks.
    likelihood : an evaluation came after the likelihood took the place of the plain loss.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    elapsed: float = 0.0
    processor: float = 0.0
    structures: int = 0
    atoms: int = 0
    best: list[float] = field(default_factory=list)
    since_best: int = 0
    plateau: float = 1.0
    plateau_wait: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False
    part: float = 0.0
    likelihood: bool = False


def save_tensors(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write tensors and a JSON-able state to `path` atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    held = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    with atomic_draft(path) as draft:
        save_file(held, str(draft), metadata={"format": FORMAT, "state": json.dumps(state)})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of `save_tensors`.

    Raises
    ------
    DataError
        if the file is damaged or no checkpoint.
    """
    with _open_checkpoint(path) as (file, state):
        return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118


def read_state(path: Path) -> dict[str, Any]:
    """Read the state of a file of `save_tensors`, without its tensors.

    Raises
    ------
    DataError
        if the file is damaged or no checkpoint.
    """
    with _open_checkpoint(path) as (_, state):
        return state


@contextmanager
def _open_checkpoint(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Open a checkpoint and give its file and its state."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise DataError(f"{path} is not a checkpoint of this program; remove it to start anew")
            yield file, json.loads(metadata["state"])
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"checkpoint {path} cannot be read ({error}); remove it to start anew") from error


def pack_run(
    module: nn.Module,
    optimizer: torch.optim.Optimizer | JointOptimizer,
    mean: RunningMean | None,
    best: dict[str, Tensor] | None,
) -> dict[str, Tensor]:
    """Collect every tensor that exact resuming needs."""
    out: dict[str, Tensor] = {f"model/{name}": p for name, p in module.named_parameters()}
    for name, p in module.named_parameters():
        for key, value in optimizer.state.get(p, {}).items():
            out[f"optimizer/{key}/{name}"] = torch.as_tensor(value)
    if mean is not None:
        out |= {f"mean/{name}": value for name, value in zip(mean.names, mean.values, strict=True)}
    if best is not None:
        out |= {f"best/{name}": value for name, value in best.items()}
    out["rng/torch"] = torch.get_rng_state()
    return out


def unpack_run(
    tensors: dict[str, Tensor],
    module: nn.Module,
    optimizer: torch.optim.Optimizer | JointOptimizer,
    mean: RunningMean | None,
) -> dict[str, Tensor] | None:
    """Put the tensors back; return the best weights, if there were any yet.

    Raises
    ------
    DataError
        if they do not fit the model.
    """
    try:
        with torch.no_grad():
            for name, p in module.named_parameters():
                p.copy_(tensors[f"model/{name}"])
                keys = {k.split("/")[1] for k in tensors if k.startswith("optimizer/") and k.split("/", 2)[2] == name}
                state = {key: tensors[f"optimizer/{key}/{name}"] for key in keys}
                optimizer.state[p] = {
                    k: v.clone() if k == "step" else v.to(device=p.device, dtype=p.dtype).clone()
                    for k, v in state.items()
                }
            if mean is not None:
                for name, value in zip(mean.names, mean.values, strict=True):
                    value.copy_(tensors[f"mean/{name}"])
    except (KeyError, RuntimeError) as error:
        raise DataError(f"the checkpoint does not fit the model ({error}); remove it to start anew") from error
    torch.set_rng_state(tensors["rng/torch"])
    best = {name.removeprefix("best/"): t for name, t in tensors.items() if name.startswith("best/")}
    return best or None


def pack_state(progress: Progress) -> dict[str, Any]:
    """Return the progress as plain data."""
    return asdict(progress)
