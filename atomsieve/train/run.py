"""One training from configuration to gfm/: read, clean, split, fit references, train, evaluate, write."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml

from atomsieve.errors import UsageError, unknown
from atomsieve.models import Ensemble
from atomsieve.structures import StructureReader, open_structures
from atomsieve.train.batches import Labels
from atomsieve.train.catalog import Catalog, scan
from atomsieve.train.checkpoint import load_tensors
from atomsieve.train.config import TrainConfig, dump_config, flatten, parse_config
from atomsieve.train.distributed import Team, alone, join, leave
from atomsieve.train.domain import fit_domain
from atomsieve.train.evaluate import Evaluation, evaluate, head_metrics, write_evaluation
from atomsieve.train.label_scales import HeadData, describe_heads, residual_energy
from atomsieve.train.log import RunLog
from atomsieve.train.loop import Material, Run
from atomsieve.train.outliers import Cleaning, clean
from atomsieve.train.plots import metrics_table, parity_plot, write_metrics
from atomsieve.train.sampler import Sizes, bootstrap_weights
from atomsieve.train.split import CALIBRATION, PARTS, TEST, TRAIN, VAL, assign_parts
from atomsieve.train.store import Store

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger(__name__)

EXAMPLES = 4
FREE_TO_CHANGE = ("output", "tensorboard", "budget.checkpoint_minutes")
"""Keys that a continued run may have different."""


@dataclass(frozen=True)
class Prepared:
    """Everything known before the first step."""

    material: Material
    heads: list[HeadData]
    part: np.ndarray
    cleaning: Cleaning


@dataclass(frozen=True)
class TrainResult:
    """What a training leaves: the folder of the ensemble, metrics per part and head, and the evaluations themselves."""

    gfm: Path
    metrics: dict[str, dict[str, dict[str, Any]]]
    evaluations: dict[str, Evaluation]


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
    team = join(config.device)
    torch.manual_seed(config.ensemble.seed)
    screen = console if team.chief else None
    try:
        with ExitStack() as stack:
            readers = [stack.enter_context(open_structures(item.path)) for item in config.data]
            digests = [r.identity() for r in readers]
            _claim_output(config, digests, team, overwrite)
            prepared = prepare(config, readers, screen)
            if team.chief:
                (config.output / "data.json").write_text(json.dumps(summary(prepared), indent=1))
            ensemble = _train_members(config, prepared, team, screen)
            return _finish(config, prepared, digests, ensemble, team, screen)
    finally:
        leave()


# -- the output folder ---------------------------------------------------------------------------------------------


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    left, right = flatten(old), flatten(new)
    keys = [k for k in sorted({*left, *right}) if left.get(k) != right.get(k)]
    return [k for k in keys if not any(k == f or k.startswith(f"{f}.") for f in FREE_TO_CHANGE)]


def _claim_output(config: TrainConfig, digests: list[str], team: Team, overwrite: bool) -> None:
    """Make the output folder ready; refuse one that holds another run."""
    said = team.share(_prepare_output(config, digests, overwrite) if team.chief else None)
    if said:
        raise UsageError(said)


def _prepare_output(config: TrainConfig, digests: list[str], overwrite: bool) -> str | None:
    """Return what is wrong with the output folder, or None after writing the resolved configuration there."""
    folder, stored = config.output, config.output / "config.yaml"
    resolved = {**config.model_dump(mode="json"), "data_sha256": digests}
    if overwrite:
        _clear(folder)
    elif stored.is_file():
        changed = _differences(_stored_configuration(stored), resolved)
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


def _stored_configuration(path: Path) -> dict[str, Any]:
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


# -- data ----------------------------------------------------------------------------------------------------------


def prepare(config: TrainConfig, readers: Sequence[StructureReader], console: Console | None = None) -> Prepared:
    """Scan, clean and split the data, fit references and sizes, and say what was found on `console`."""
    with _progress(console, "reading") as step:
        everything = scan(config.data, readers, step)
    cleaning = clean(everything, config.cleaning)
    catalog = everything.take(cleaning.keep)
    _check_heads(catalog, config)
    part = assign_parts(catalog, config.split, config.data)
    store = Store(catalog, readers, config.batch.in_memory * 1e9)
    heads = describe_heads(catalog, part == TRAIN, store.force_sums(part == TRAIN), config.loss)
    residual = residual_energy(catalog, heads)
    labels = Labels.build(residual, catalog.has_forces, catalog.has_stress, catalog.n_atoms, heads)
    sizes = Sizes(catalog.n_atoms, _edges(config, store) if config.batch.edges is not None else None)
    train_rows = np.flatnonzero(part == TRAIN)
    val_rows = _thin(np.flatnonzero(part == VAL), catalog.head, config.budget.eval_structures, config.split.seed)
    bootstrap = None
    if config.ensemble.bootstrap:
        bootstrap = bootstrap_weights(catalog.head[train_rows], _seeds(config), len(catalog), train_rows)
    material = Material(config, store, labels, sizes, train_rows, val_rows, bootstrap)
    prepared = Prepared(material, heads, part, cleaning)
    if console is not None:
        _say(prepared, console)
    return prepared


def _check_heads(catalog: Catalog, config: TrainConfig) -> None:
    names = catalog.sources
    if config.default_head is None and len(names) > 1:
        raise UsageError(
            f"there are {len(names)} heads: state default_head, the one that screening uses if none is named; allowed: "
            f"{', '.join(names)}"
        )
    if config.default_head is not None and config.default_head not in names:
        raise unknown("default_head", config.default_head, names)


def _edges(config: TrainConfig, store: Store) -> np.ndarray:
    """Count the edges of every structure, for the edge budget."""
    from atomsieve.graphs import count_edges

    n = len(store.catalog)
    parts = [count_edges(store.fetch(np.arange(k, min(k + 5000, n))), config.model.cutoff) for k in range(0, n, 5000)]
    return np.concatenate(parts)


def _thin(rows: np.ndarray, head: np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    """Return at most `limit` of the rows, the same part of every head (at least 10 each), in order."""
    if limit is None or len(rows) <= limit:
        return rows
    rng, kept = np.random.default_rng([seed, 4]), []
    for h in np.unique(head[rows]):
        own = rows[head[rows] == h]
        n = min(len(own), max(10, round(len(own) * limit / len(rows))))
        kept.append(rng.permutation(own)[:n])
    return np.sort(np.concatenate(kept))


def summary(prepared: Prepared) -> dict[str, Any]:
    """Return what is known of the data, per source: counts per part, what was left out, references, sizes."""
    catalog = prepared.material.store.catalog
    out: dict[str, Any] = {}
    for head, data in enumerate(prepared.heads):
        counts = np.bincount(prepared.part[catalog.head == head], minlength=len(PARTS))
        out[data.name] = {
            "level_of_theory": data.level_of_theory,
            **{name: int(n) for name, n in zip(PARTS, counts, strict=True)},
            "left_out": prepared.cleaning.counts[data.name],
            "energy_size": data.energy_size,
            "force_size": data.force_size,
            "output_scale": data.output_scale,
            "references": data.references.energies,
            "atoms": data.references.counts,
            **data.statistics,
        }
    return out


def _say(prepared: Prepared, console: Console) -> None:
    from rich.table import Table

    table = Table(title="sources after cleaning", box=None, pad_edge=False)
    for heading in ("source", *PARTS, "left out", "elements", "|E| meV/atom", "|F| eV/A"):
        table.add_column(heading, justify="left" if heading == "source" else "right")
    notes = []
    for name, row in summary(prepared).items():
        left = sum(row["left_out"].values())
        force = row["force_norm_mean"]
        table.add_row(
            name,
            *(str(row[p]) for p in PARTS),
            str(left),
            str(len(row["references"])),
            f"{1e3 * row['residual_energy_per_atom_mae']:.1f}",
            "-" if force is None else f"{force:.3f}",
        )
        for reason, number in row["left_out"].items():
            notes.append(f"{name}: {number} left out: {reason}")
        for combination in row["inseparable_elements"][:3]:
            notes.append(f"{name}: the data cannot separate {combination}; the mean energy per atom decides")
    console.print(table)
    for note in notes:
        console.print(f"  {note}", highlight=False, soft_wrap=True)


@contextmanager
def _progress(console: Console | None, what: str) -> Iterator[Any]:
    """Show a bar for calls `step(done, total)`; silent without a console."""
    if console is None:
        yield None
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True, disable=not console.is_interactive) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


# -- training ------------------------------------------------------------------------------------------------------


def _seeds(config: TrainConfig) -> list[int]:
    return [config.ensemble.seed + k for k in range(config.ensemble.members)]


def _ensemble(config: TrainConfig, heads: list[HeadData], seeds: list[int], team: Team) -> Ensemble:
    ensemble = Ensemble(config.model, [h.spec() for h in heads], seeds, config.ensemble.kind)
    if config.ensemble.alike_heads:
        with torch.no_grad():
            for p in ensemble.readout.parameters():
                p.copy_(p[:, :1].expand_as(p))
    if config.precision == "fp64":
        ensemble = ensemble.double()
    return ensemble.to(team.device)


def _groups(config: TrainConfig, team: Team) -> list[list[int]]:
    """Return the members of each run, in the order of the runs."""
    members = list(range(config.ensemble.members))
    if config.ensemble.mode == "together":
        return [members]
    if config.ensemble.mode == "separate":
        return [[k] for k in members]
    if team.size > len(members):
        raise UsageError(
            f"ensemble.mode: spread deals {len(members)} members to {team.size} ranks; use at most {len(members)} "
            "ranks, or mode: together"
        )
    return [members[r :: team.size] for r in range(team.size)]


def _train_members(config: TrainConfig, prepared: Prepared, team: Team, console: Console | None) -> Ensemble:
    """Train all runs of this rank and return the whole ensemble with its best weights (on every rank)."""
    seeds, groups = _seeds(config), _groups(config, team)
    spread = config.ensemble.mode == "spread"
    hours = config.budget.hours
    if hours is not None and config.ensemble.mode == "separate":
        hours /= len(groups)
    runs = config.output / "runs"
    for number, members in enumerate(groups):
        if spread and number != team.rank:
            continue
        own_team = alone(team) if spread else team
        ensemble = _ensemble(config, prepared.heads, [seeds[k] for k in members], team)
        material = prepared.material
        if material.bootstrap is not None:
            material = replace(material, bootstrap=material.bootstrap[members])
        folder = runs / f"{number:03d}"
        # With one data order for all, the order follows the first seed; runs of their own each follow their own.
        with RunLog(folder if own_team.chief else None, console, config.tensorboard) as out:
            Run(ensemble, material, own_team, folder, out, order_seed=seeds[members[0]], hours=hours).fit()
    team.barrier()
    whole = _ensemble(config, prepared.heads, seeds, team)
    return _gather(whole, groups, runs)


@torch.no_grad()
def _gather(whole: Ensemble, groups: list[list[int]], runs: Path) -> Ensemble:
    """Put the best weights of all runs into one ensemble."""
    for number, members in enumerate(groups):
        best, _ = load_tensors(runs / f"{number:03d}" / "best.safetensors")
        for name, p in whole.named_parameters():
            own = slice(None) if whole.shallow else members
            p[own] = best[name].to(device=p.device, dtype=p.dtype)
    return whole


# -- the end -------------------------------------------------------------------------------------------------------


def _finish(
    config: TrainConfig,
    prepared: Prepared,
    digests: list[str],
    ensemble: Ensemble,
    team: Team,
    console: Console | None,
) -> TrainResult:
    """Evaluate on the parts kept from training, write tables and plot, save the ensemble, and calibrate it."""
    from atomsieve.gfm.folder import save_gfm
    from atomsieve.train.calibrate import calibrate

    material, part = prepared.material, prepared.part
    sources = material.store.catalog.sources
    evaluations: dict[str, Evaluation] = {}
    for name, value in (("val", VAL), ("test", TEST), ("calibration", CALIBRATION)):
        rows = np.flatnonzero(part == value)
        if len(rows):
            with _progress(console, f"evaluating {name}") as step:
                evaluations[name] = evaluate(
                    ensemble, material.store, material.labels, rows, material.sizes, config.batch, team, step
                )
    metrics = {name: head_metrics(result, sources) for name, result in evaluations.items()}
    gfm = config.output / "gfm"
    if team.chief:
        write_metrics(config.output, metrics)
        for name, result in evaluations.items():
            write_evaluation(config.output / f"evaluation_{name}.npz", result)
        if evaluations:
            last = next(name for name in ("test", "val", "calibration") if name in evaluations)
            title = f"{last}: {len(evaluations[last].index)} structures"
            parity_plot(config.output / "parity.png", evaluations[last], sources, title)
        examples = material.store.fetch(_examples(prepared))
        save_gfm(
            gfm,
            ensemble.cpu(),
            default_head=config.default_head,
            examples=examples,
            overwrite=True,
            training={"config": config.model_dump(mode="json"), "metrics": metrics, "data_sha256": digests},
        )
        if console is not None:
            for name, heads in metrics.items():
                console.print(f"\n{name}\n{metrics_table(heads)}", highlight=False, soft_wrap=True)
    team.barrier()
    fit_domain(gfm, ensemble, material.store, part, team, _progress(console if team.chief else None, "fitting domains"))
    calibrate(gfm, config, material.store, np.flatnonzero(part == CALIBRATION), digests, team, console)
    if console is not None:
        console.print(f"\nensemble written to {gfm}", highlight=False, soft_wrap=True)
    return TrainResult(gfm, metrics, evaluations)


def _examples(prepared: Prepared) -> np.ndarray:
    """Return some small training structures, of as many heads as possible."""
    catalog = prepared.material.store.catalog
    train_rows = prepared.material.train
    chosen = []
    for head in np.unique(catalog.head[train_rows])[:EXAMPLES]:
        own = train_rows[catalog.head[train_rows] == head]
        chosen.append(own[np.argmin(catalog.n_atoms[own])])
    return np.array(chosen, np.int64)
