"""One training from configuration to gfm/: read, clean, split, fit references, train, evaluate, write."""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from atomsieve.errors import UsageError
from atomsieve.models import Ensemble
from atomsieve.structures import open_structures
from atomsieve.train.checkpoint import load_tensors
from atomsieve.train.config import TrainConfig, dump_config, flatten, parse_config
from atomsieve.train.distributed import ProcessGroup, join_process_group, leave_process_group, single_rank_group
from atomsieve.train.finish import TrainResult, finish
from atomsieve.train.label_scales import HeadData
from atomsieve.train.log import RunLog
from atomsieve.train.loop import Run
from atomsieve.train.prepare import Prepared, member_seeds, prepare, summary

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger(__name__)

FREE_TO_CHANGE = ("output", "tensorboard", "budget.checkpoint_minutes")
"""Keys that a continued run may have different."""


def train(config: TrainConfig, console: Console | None = None, *, overwrite: bool = False) -> TrainResult:
    """Train as the configuration says; run again after an interruption, it continues where it was.

    Raises
    ------
    UsageError
        if the output folder holds a run of another configuration or other data (the keys are named), or several heads
        come without `default_head`.
    Interrupted
        after SIGTERM or Ctrl-C; everything needed to continue is saved.
    """
    group = join_process_group(config.device)
    torch.manual_seed(config.ensemble.seed)
    screen = console if group.is_first else None
    try:
        with ExitStack() as stack:
            readers = [stack.enter_context(open_structures(item.path)) for item in config.data]
            digests = [r.identity() for r in readers]
            _claim_output(config, digests, group, overwrite)
            prepared = prepare(config, readers, screen)
            if group.is_first:
                (config.output / "data.json").write_text(json.dumps(summary(prepared), indent=1))
            ensemble = _train_members(config, prepared, group, screen)
            return finish(config, prepared, digests, ensemble, group, screen)
    finally:
        leave_process_group()


# -- the output folder ---------------------------------------------------------------------------------------------


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    left, right = flatten(old), flatten(new)
    keys = [k for k in sorted({*left, *right}) if left.get(k) != right.get(k)]
    return [k for k in keys if not any(k == f or k.startswith(f"{f}.") for f in FREE_TO_CHANGE)]


def _claim_output(config: TrainConfig, digests: list[str], group: ProcessGroup, overwrite: bool) -> None:
    """Make the output folder ready; refuse one that holds another run."""
    said = group.broadcast(_prepare_output(config, digests, overwrite) if group.is_first else None)
    if said:
        raise UsageError(said)


def _prepare_output(config: TrainConfig, digests: list[str], overwrite: bool) -> str | None:
    """Return what is wrong with the output folder, or None after writing the resolved configuration there."""
    folder, stored = config.output, config.output / "config.yaml"
    resolved = {**config.model_dump(mode="json"), "data_sha256": digests}
    if overwrite:
        _clear(folder)
    elif stored.is_file():
        changed = _differences(_read_stored_configuration(stored), resolved)
        if changed:
            shown = ", ".join(changed[:6]) + (f" and {len(changed) - 6} more" if len(changed) > 6 else "")
            return (
                f"{folder} holds a run of another configuration (changed: {shown}); give another output, restore the "
                "old values, or use --overwrite to start anew"
            )
        return None
    elif folder.exists() and any(folder.iterdir()):
        return f"{folder} is not empty and holds no run; give another output folder"
    folder.mkdir(parents=True, exist_ok=True)
    stored.write_text(dump_config(config) + yaml.safe_dump({"data_sha256": digests}))
    return None


def _read_stored_configuration(path: Path) -> dict[str, Any]:
    """Read the configuration of an earlier run; keys that its version did not have yet get their defaults."""
    raw = yaml.safe_load(path.read_text()) or {}
    digests = raw.pop("data_sha256", None)
    try:
        raw = parse_config(raw).model_dump(mode="json")
    except UsageError as error:
        log.info("%s does not fit the present schema (%s); compared as it is", path, error)
    return {**raw, "data_sha256": digests}


def _clear(folder: Path) -> None:
    """Remove what an earlier run wrote, and nothing else."""
    import shutil

    if not (folder / "config.yaml").is_file():
        return
    for name in ("runs", "gfm"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in folder.glob("*"):
        if path.is_file() and path.suffix in (".json", ".md", ".png", ".npz", ".yaml", ".jsonl"):
            path.unlink()


# -- training ------------------------------------------------------------------------------------------------------


def _ensemble(config: TrainConfig, heads: list[HeadData], seeds: list[int], group: ProcessGroup) -> Ensemble:
    ensemble = Ensemble(config.model, [h.spec() for h in heads], seeds, config.ensemble.kind)
    if config.ensemble.alike_heads:
        with torch.no_grad():
            for p in ensemble.readout.parameters():
                p.copy_(p[:, :1].expand_as(p))
    if config.precision == "fp64":
        ensemble = ensemble.double()
    return ensemble.to(group.device)


def _groups(config: TrainConfig, group: ProcessGroup) -> list[list[int]]:
    """Return the members of each run, in the order of the runs."""
    members = list(range(config.ensemble.members))
    if config.ensemble.mode == "together":
        return [members]
    if config.ensemble.mode == "separate":
        return [[k] for k in members]
    if group.size > len(members):
        raise UsageError(
            f"ensemble.mode: spread deals {len(members)} members to {group.size} ranks; use at most {len(members)} "
            "ranks, or mode: together"
        )
    return [members[r :: group.size] for r in range(group.size)]


def _train_members(config: TrainConfig, prepared: Prepared, group: ProcessGroup, console: Console | None) -> Ensemble:
    """Train all runs of this rank and return the whole ensemble with its best weights (on every rank)."""
    seeds, groups = member_seeds(config), _groups(config, group)
    spread = config.ensemble.mode == "spread"
    hours = config.budget.hours
    if hours is not None and config.ensemble.mode == "separate":
        hours /= len(groups)
    runs = config.output / "runs"
    for number, members in enumerate(groups):
        if spread and number != group.rank:
            continue
        own_group = single_rank_group(group) if spread else group
        ensemble = _ensemble(config, prepared.heads, [seeds[k] for k in members], group)
        material = prepared.material
        if material.bootstrap is not None:
            material = replace(material, bootstrap=material.bootstrap[members])
        folder = runs / f"{number:03d}"
        # With one data order for all, the order follows the first seed; runs of their own each follow their own.
        with RunLog(folder if own_group.is_first else None, console, config.tensorboard) as out:
            Run(ensemble, material, own_group, folder, out, order_seed=seeds[members[0]], hours=hours).fit()
    group.barrier()
    whole = _ensemble(config, prepared.heads, seeds, group)
    return _gather_weights(whole, groups, runs)


@torch.no_grad()
def _gather_weights(whole: Ensemble, groups: list[list[int]], runs: Path) -> Ensemble:
    """Put the best weights of all runs into one ensemble."""
    for number, members in enumerate(groups):
        best, _ = load_tensors(runs / f"{number:03d}" / "best.safetensors")
        for name, p in whole.named_parameters():
            own = slice(None) if whole.shallow else members
            p[own] = best[name].to(device=p.device, dtype=p.dtype)
    return whole
