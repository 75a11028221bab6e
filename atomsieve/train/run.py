"""One training from configuration to gfm/: read, clean, split, fit references, train, evaluate, write."""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from atomsieve.errors import AtomSieveError, UsageError
from atomsieve.forks import check_fork
from atomsieve.models import Ensemble
from atomsieve.runs.output_files import atomic_write
from atomsieve.runs.output_folder import OutputFolder, find_changes
from atomsieve.structures import open_structures
from atomsieve.train.checkpoint import load_tensors
from atomsieve.train.config import TrainConfig, dump_config, parse_config
from atomsieve.train.data.datasets import ensure_datasets, list_sources
from atomsieve.train.data.label_scales import HeadData
from atomsieve.train.distributed import ProcessGroup, join_process_group, leave_process_group, single_rank_group
from atomsieve.train.finish import TrainResult, finish
from atomsieve.train.log import RunLog
from atomsieve.train.loop import Run
from atomsieve.train.prepare import Prepared, check_default_head, member_seeds, prepare, summary

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger(__name__)

FREE_TO_CHANGE = ("output", "tensorboard", "budget.checkpoint_minutes")
"""Keys that a continued run may have different."""
ENDINGS = (".json", ".md", ".png", ".npz", ".yaml", ".jsonl")
"""Endings of the files that a training writes."""
SHOWN_KEYS = 6


def train(config: TrainConfig, console: Console | None = None, *, overwrite: bool = False) -> TrainResult:
    """Train an ensemble from a configuration; a call after an interruption continues from the last checkpoint.

    Raises
    ------
    UsageError
        if the output folder holds a run of another configuration or other data (the keys are named), or several heads
        come without `default_head`; in a forked process that would hang (`atomsieve.forks`).
    Interrupted
        after SIGTERM or Ctrl-C; everything needed to continue is saved.
    """
    check_fork()
    group = join_process_group(config.device)
    torch.manual_seed(config.ensemble.seed)
    screen = console if group.is_first else None
    try:
        with ExitStack() as stack:
            copies = ensure_datasets(config, group, screen)
            readers = [stack.enter_context(open_structures(copy.path)) for copy in copies]
            digests = [r.identity() for r in readers]
            check_output(config, digests, group, overwrite)
            check_default_head(list_sources(config.data, readers), config.default_head)
            prepared = prepare(config, readers, screen)
            claim_output(config, digests, group, overwrite)  # now that all was checked
            if group.is_first:
                (config.output / "data.json").write_text(json.dumps(summary(prepared), indent=1))
            ensemble = _train_members(config, prepared, group, screen)
            return finish(config, prepared, digests, [copy.content for copy in copies], ensemble, group, screen)
    finally:
        leave_process_group()


# -- the output folder ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainFolder(OutputFolder):
    """The output folder of a training: config.yaml with digests of the data, runs/NNN/, gfm/, tables and plots."""

    contents = "a training"
    option = "output"
    record_name = "config.yaml"

    def list_files(self) -> list[Path]:
        """Return the files of a training, config.yaml last; without config.yaml no file is one."""
        if not self.is_ours():
            return []
        found = [path for path in sorted(self.path.iterdir()) if path.is_file() and path.suffix in ENDINGS]
        return [*(path for path in found if path != self.record), self.record]

    def list_folders(self) -> list[Path]:
        """Return the folders of a training; without config.yaml no folder is one."""
        return [self.path / "runs", self.path / "gfm"] if self.is_ours() else []


def check_output(config: TrainConfig, digests: list[str], group: ProcessGroup, overwrite: bool) -> None:
    """Refuse an output folder that holds another run, before anything is read or written; see `claim_output`."""
    problem = group.broadcast(_find_problem(config, digests, overwrite) if group.is_first else None)
    if problem:
        raise UsageError(problem)


def claim_output(config: TrainConfig, digests: list[str], group: ProcessGroup, overwrite: bool) -> None:
    """Make the output folder ready; refuse one that holds another run.

    digests : identity of each data file.

    Raises
    ------
    UsageError
        on every rank: the message names the keys of the configuration that differ.
    """
    problem = group.broadcast(_prepare_output(config, digests, overwrite) if group.is_first else None)
    if problem:
        raise UsageError(problem)


def _prepare_output(config: TrainConfig, digests: list[str], overwrite: bool) -> str | None:
    """Return why the output folder cannot be used, or None after writing the resolved configuration there."""
    folder = TrainFolder(config.output)
    try:
        folder.make()
    except AtomSieveError as error:
        return str(error)
    if problem := _find_problem(config, digests, overwrite):
        return problem
    if overwrite:
        folder.clear()
    elif folder.is_ours():
        return None
    text = dump_config(config) + yaml.safe_dump({"data_sha256": digests})
    atomic_write(folder.record, text.encode())
    return None


def _find_problem(config: TrainConfig, digests: list[str], overwrite: bool) -> str | None:
    """Return why the output folder cannot be used; nothing is written."""
    folder = TrainFolder(config.output)
    if overwrite or not folder.path.is_dir():
        return None
    if folder.is_ours():
        return _compare(folder, {**config.model_dump(mode="json"), "data_sha256": digests})
    if folder.list_foreign():
        return f"{folder.path} is not empty and holds no run; give another output folder"
    return None


def _compare(folder: TrainFolder, resolved: dict[str, Any]) -> str | None:
    """Return which keys of the earlier run's configuration differ, None if it may be continued."""
    found = sorted(find_changes(_read_record(folder.record), resolved, lists=True))
    changed = [k for k in found if not any(k == free or k.startswith(f"{free}.") for free in FREE_TO_CHANGE)]
    if not changed:
        return None
    more = f" and {len(changed) - SHOWN_KEYS} more" if len(changed) > SHOWN_KEYS else ""
    return (
        f"{folder.path} holds a run of another configuration (changed: {', '.join(changed[:SHOWN_KEYS])}{more}); give "
        "another output, restore the old values, or use --overwrite to start anew"
    )


def _read_record(path: Path) -> dict[str, Any]:
    """Read the configuration of an earlier run; keys that its version did not have yet get their defaults."""
    raw = yaml.safe_load(path.read_text()) or {}
    digests = raw.pop("data_sha256", None)
    try:
        raw = parse_config(raw).model_dump(mode="json")
    except UsageError as error:
        log.info("%s does not fit the present schema (%s); compared as it is", path, error)
    return {**raw, "data_sha256": digests}


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
    hours, core_minutes = config.budget.hours, config.budget.core_minutes
    if hours is not None and config.ensemble.mode == "separate":
        hours /= len(groups)
    if core_minutes is not None:
        core_minutes /= len(groups)
    runs = config.output / "runs"
    for number, members in enumerate(groups):
        if spread and number != group.rank:
            continue
        own_group = single_rank_group(group) if spread else group
        ensemble = _ensemble(config, prepared.heads, [seeds[k] for k in members], group)
        if group.is_first:
            ensemble.tell_slowdown(group.device)
        material = prepared.material
        if material.bootstrap is not None:
            material = replace(material, bootstrap=material.bootstrap[members])
        folder = runs / f"{number:03d}"
        # With one data order for all, the order follows the first seed; runs of their own each follow their own.
        with RunLog(folder if own_group.is_first else None, console, config.tensorboard) as out:
            Run(
                ensemble,
                material,
                own_group,
                folder,
                out,
                order_seed=seeds[members[0]],
                hours=hours,
                core_minutes=core_minutes,
            ).fit()
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
