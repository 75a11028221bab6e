"""The end of a training: validate, write the ensemble, fit domain and calibration, evaluate the written folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from atomsieve.evaluation.baselines import write_compositions
from atomsieve.evaluation.metrics import compute_head_metrics, describe_evaluation
from atomsieve.evaluation.parity import draw_parity
from atomsieve.evaluation.verdict import Verdict, judge
from atomsieve.gfm.domain_file import dump_domain
from atomsieve.gfm.evaluation_file import format_table
from atomsieve.gfm.folder import record_evaluation, record_files, save_gfm
from atomsieve.gfm.manifest import CALIBRATION as CALIBRATION_FILE
from atomsieve.gfm.manifest import DOMAIN, read_manifest
from atomsieve.models import Ensemble
from atomsieve.predict.predictor import Predictor
from atomsieve.runs.output_files import atomic_write
from atomsieve.stability.candidates import find_lowest, hash_reduced, strip_labels, write_candidates
from atomsieve.stability.phases import Compositions
from atomsieve.train.config import TrainConfig
from atomsieve.train.data.split import CALIBRATION, TEST, VAL
from atomsieve.train.distributed import ProcessGroup
from atomsieve.train.fits import fit_calibration, fit_domains, fit_head_compositions, predict_part
from atomsieve.train.metrics import compute_validation_metrics, write_metrics, write_predictions
from atomsieve.train.prepare import Prepared, show_progress
from atomsieve.train.record import describe_training
from atomsieve.train.validation import Validation, validate

if TYPE_CHECKING:
    from rich.console import Console

KEPT_PARTS = {"val": VAL, "test": TEST, "calibration": CALIBRATION}
"""Parts that the gradient does not see."""
EXAMPLES = 4
MOST_EVALUATED = 20_000
"""Structures of a head by which the written ensemble is evaluated at most; `atomsieve evaluate` takes whole files."""


@dataclass(frozen=True)
class TrainResult:
    """Result of a training: the folder of the ensemble, metrics per part and head, and the validations behind them."""

    gfm: Path
    metrics: dict[str, dict[str, dict[str, Any]]]
    validations: dict[str, Validation]


def finish(
    config: TrainConfig,
    prepared: Prepared,
    digests: list[str],
    contents: list[str],
    ensemble: Ensemble,
    group: ProcessGroup,
    console: Console | None,
) -> TrainResult:
    """Write the ensemble with its domain and calibration, and the tables and plots about it.

    digests : identity of each dataset. contents : digest of each file that was converted into one, else empty.
    """
    material = prepared.material
    sources, gfm = material.store.catalog.sources, config.output / "gfm"
    validations = _validate_parts(prepared, ensemble, group, console)
    metrics = {name: compute_validation_metrics(result, sources) for name, result in validations.items()}
    if group.is_first:
        write_metrics(config.output, metrics)
        for name, result in validations.items():
            write_predictions(config.output / f"evaluation_{name}.npz", result)
        save_gfm(
            gfm,
            ensemble.cpu(),
            default_head=config.default_head,
            examples=material.store.fetch(_examples(prepared)),
            overwrite=True,
            training={
                "config": config.model_dump(mode="json"),
                "metrics": metrics,
                "data_sha256": digests,
                "data_contents": contents,
            },
        )
        _keep_candidates(gfm, prepared)
    group.barrier()
    _record_fits(gfm, config, prepared, digests, ensemble, group, console)
    last = next((name for name in ("test", "val", "calibration") if name in validations), None)
    if last is not None:
        metrics[last], verdict = _evaluate_written(gfm, config, prepared, digests, last, metrics[last], group, console)
        if group.is_first:
            write_metrics(config.output, metrics, _format_verdict(verdict))
    if console is not None:
        console.print(f"\nensemble written to {gfm}", highlight=False, soft_wrap=True)
    return TrainResult(gfm, metrics, validations)


def _keep_candidates(gfm: Path, prepared: Prepared) -> None:
    """Keep the structures of lowest label of each reduced formula, by source, as candidates for a hull.

    Structures that test the ensemble are left out. Sources of fewer than two formulas give no hull.
    """
    catalog, store = prepared.material.store.catalog, prepared.material.store
    for head, name in enumerate(catalog.sources):
        own = np.flatnonzero((catalog.head == head) & catalog.has_energy & (prepared.part != TEST))
        own = own[np.isfinite(catalog.energy[own]) & ~(np.nan_to_num(catalog.charge[own]) != 0)]
        structure, element = np.nonzero(catalog.composition[own])
        starts = np.searchsorted(structure, np.arange(len(own) + 1)).astype(np.int64)
        counts = catalog.composition[own][structure, element].astype(np.int64)
        keys = hash_reduced(Compositions(starts, element.astype(np.uint8), counts))
        lowest = own[find_lowest(keys, catalog.energy[own] / catalog.n_atoms[own])]
        if len(lowest) > 1:
            write_candidates(gfm, name, strip_labels(store.fetch(lowest)))


def _validate_parts(
    prepared: Prepared, ensemble: Ensemble, group: ProcessGroup, console: Console | None
) -> dict[str, Validation]:
    material, found = prepared.material, {}
    for name, value in KEPT_PARTS.items():
        rows = np.flatnonzero(prepared.part == value)
        if len(rows):
            with show_progress(console, f"evaluating {name}") as step:
                found[name] = validate(
                    ensemble, material.store, material.labels, rows, material.sizes, material.config.batch, group, step
                )
    return found


def _record_fits(
    gfm: Path,
    config: TrainConfig,
    prepared: Prepared,
    digests: list[str],
    ensemble: Ensemble,
    group: ProcessGroup,
    console: Console | None,
) -> None:
    """Fit domain and calibration, and put both into the written folder at once."""
    store, sources = prepared.material.store, prepared.material.store.catalog.sources
    rows = np.flatnonzero(prepared.part == CALIBRATION)
    shown = show_progress(console if group.is_first else None, "fitting domains")
    domains = fit_domains(ensemble, store, prepared.part, group, shown)
    files = {DOMAIN: dump_domain(domains, [h.name for h in ensemble.heads])} if domains else {}
    if len(rows) and config.ensemble.members > 1:
        predictor = Predictor.load(gfm, device=_device_name(group.device))
        calibration = fit_calibration(predictor, config, store, rows, digests, group)
        files[CALIBRATION_FILE] = calibration.dumps()
        lacking = [name for name in sources if name not in calibration.heads]
        note = f"uncalibrated, with too few structures kept for it: {', '.join(lacking)}" if lacking else ""
    elif config.ensemble.members > 1:
        note = (
            "every head is uncalibrated: no structures were kept for calibration (split.calibration); later: atomsieve "
            "calibrate"
        )
    else:
        note = "every head is uncalibrated: one member has no spread"
    if console is not None and note:
        console.print(f"  {note}", highlight=False, soft_wrap=True)
    group.run_and_gather(lambda: record_files(gfm, files) if files and group.is_first else None)


def _evaluate_written(
    gfm: Path,
    config: TrainConfig,
    prepared: Prepared,
    digests: list[str],
    part: str,
    metrics: dict[str, dict[str, Any]],
    group: ProcessGroup,
    console: Console | None,
) -> tuple[dict[str, dict[str, Any]], Verdict]:
    """Evaluate the written ensemble on a part as `atomsieve evaluate` does; return the numbers of its heads, complete.

    evaluation.json and the card of the folder, parity.png and the console show them. metrics : of the heads, as the
    network that was trained gives them.
    """
    store = prepared.material.store
    chosen = np.flatnonzero(prepared.part == KEPT_PARTS[part])
    manifest, predictor = read_manifest(gfm), Predictor.load(gfm, device=_device_name(group.device))
    compositions = fit_head_compositions(store, prepared.material.labels.residual, prepared.part)
    rows = predict_part(
        predictor, store, chosen, group, most=MOST_EVALUATED, seed=config.split.seed, compositions=compositions
    )
    heads = {name: {**metrics[name], **compute_head_metrics(found, scores=False)} for name, found in rows.items()}
    files = [config.data[k].path.name for k in np.unique(store.catalog.file[chosen])]
    data = {
        "name": f"the {part} part of {', '.join(dict.fromkeys(files))}",
        "part": part,
        "sha256": digests[int(store.catalog.file[chosen][0])] if len(set(files)) == 1 else "",
        "structures": len(chosen),
        "trained_on": False,
    }
    training = describe_training(config, len(prepared.material.train))
    evaluation = describe_evaluation(gfm, manifest, predictor, heads, data, training)
    verdict = judge(evaluation)

    def write() -> None:
        if group.is_first:
            write_compositions(gfm, compositions, predictor.heads)
            record_evaluation(gfm, evaluation)
            atomic_write(config.output / "parity.png", draw_parity(rows, title=f"{part}, by the written ensemble"))

    group.run_and_gather(write)
    if console is not None:
        console.print(f"\n{part}\n{format_table(heads)}\n", highlight=False, soft_wrap=True)
        for line in verdict.format_lines():
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    return heads, verdict


def _format_verdict(verdict: Verdict) -> str:
    """Return the verdict as a list in Markdown."""
    lines = [f"- {remark.text}" for remark in verdict.general]
    for name, remarks in verdict.heads.items():
        lines += [f"- {name}", *(f"    - {remark.text}" for remark in remarks)]
    return "\n".join(lines)


def _device_name(device: torch.device) -> str:
    return f"cuda:{device.index}" if device.type == "cuda" and device.index is not None else device.type


def _examples(prepared: Prepared) -> np.ndarray:
    """Return some small training structures, of as many heads as possible."""
    catalog = prepared.material.store.catalog
    train_rows = prepared.material.train
    chosen = []
    for head in np.unique(catalog.head[train_rows])[:EXAMPLES]:
        own = train_rows[catalog.head[train_rows] == head]
        chosen.append(own[np.argmin(catalog.n_atoms[own])])
    return np.array(chosen, np.int64)
