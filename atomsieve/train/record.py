"""What is worth telling of a finished training: its length, and whether the loss still fell at its end.

Read from the files of the runs, so that it also holds for a training that was continued.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.train.checkpoint import read_state
from atomsieve.train.config import TrainConfig

ENOUGH = 4
"""Evaluations from which on they tell of the fall of the loss, in place of the training loss."""


def describe_training(config: TrainConfig, train_structures: int) -> dict[str, Any]:
    """Return how long the runs of a training took and how its loss fell; of several runs, the shortest.

    steps, epochs, skipped, seconds (wall time) : of the run. train_structures : as given.
    fall, fall_se, fall_of : relative fall of the loss when the steps doubled last (`find_fall`), its standard error
        where known, and what fell: "validation" or "training". Absent where the run is too short to tell.
    """
    found = []
    for folder in sorted((config.output / "runs").iterdir()):
        if (folder / "last.safetensors").is_file():
            found.append((read_state(folder / "last.safetensors"), folder))
    if not found:
        return {}
    state, folder = min(found, key=lambda one: one[0]["step"])
    out: dict[str, Any] = {
        "steps": state["step"],
        "epochs": state["structures"] / max(train_structures, 1),
        "train_structures": train_structures,
        "seconds": sum(one["elapsed"] for one, _ in found),
        "skipped": state["skipped"],
        "runs": len(found),
    }
    # From there on the likelihood takes the place of the loss, whose values then are others.
    end = config.loss.likelihood_from * state["step"] if config.loss.spread_taught else np.inf
    return out | _describe_fall(_read_losses(folder / "log.jsonl", config), state["history"], end)


def _describe_fall(
    training: tuple[NDArray[np.float64], NDArray[np.float64]], history: list[dict[str, Any]], end: float
) -> dict[str, Any]:
    scores = np.array([(one["step"], np.mean(one["score"])) for one in history], float).reshape(-1, 2)
    validation = find_fall(scores[:, 0], scores[:, 1], end, least=1)
    if validation is not None and (scores[:, 0] <= end).sum() >= ENOUGH:
        return {"fall": validation[0], "fall_se": validation[1], "fall_of": "validation"}
    plain = find_fall(*training, end)
    return {} if plain is None else {"fall": plain[0], "fall_se": plain[1], "fall_of": "training"}


def find_fall(
    steps: NDArray[np.float64], losses: NDArray[np.float64], end: float = np.inf, least: int = 3
) -> tuple[float, float] | None:
    """Return by what part the loss fell when the steps last doubled, with its standard error (0 of single values).

    The mean over the second half of the run is compared with that over the quarter before. None where either has fewer
    values than `least`, or they are not positive.

    steps, losses : [N]. end : later steps do not count.
    """
    use = np.isfinite(losses) & (steps <= end)
    steps, losses = steps[use], losses[use]
    if not len(steps):
        return None
    last = steps.max()
    after, before = losses[steps > last / 2], losses[(steps > last / 4) & (steps <= last / 2)]
    if min(len(before), len(after)) < least or before.mean() <= 0 or after.mean() <= 0:
        return None
    ratio = float(after.mean() / before.mean())
    if min(len(before), len(after)) < 2:
        return 1 - ratio, 0.0
    parts = [values.std(ddof=1) / np.sqrt(len(values)) / values.mean() for values in (before, after)]
    return 1 - ratio, float(ratio * np.hypot(*parts))


def _read_losses(path: Path, config: TrainConfig) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the steps and losses of a log, with the weights of the beginning: those of the loss change on the way."""
    steps, losses = [], []
    rules = config.loss
    try:
        with path.open() as file:
            for line in file:
                row = json.loads(line)
                if row.get("kind") == "train":
                    parts = zip((rules.energy, rules.force, rules.stress), ("energy", "force", "stress"), strict=True)
                    steps.append(row["step"])
                    losses.append(sum(weight * row[name] for weight, name in parts))
    except (OSError, ValueError, KeyError):
        return np.zeros(0), np.zeros(0)
    return np.array(steps, float), np.array(losses, float)
