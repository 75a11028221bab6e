"""Makes the artefacts of a gfm/ folder: written to one side, checked in a fresh process, then moved and recorded."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch

from atomsieve.devices import choose_device
from atomsieve.errors import AtomSieveError, DataError, UsageError
from atomsieve.export import fidelity
from atomsieve.export.interface import OUTPUTS
from atomsieve.export.report import write_report
from atomsieve.export.spec import Spec, describe_processor, entry_of, import_format
from atomsieve.export.trust import trust
from atomsieve.gfm import (
    EnsembleManifest,
    ExportEntry,
    load_gfm,
    read_manifest,
    record_exports,
    same_weights,
    weights_id,
)
from atomsieve.gfm.exports import FOLDER, check_export
from atomsieve.models import Ensemble
from atomsieve.runs.lock import PathLock
from atomsieve.runs.output_files import sync_file, sync_folder

LOCK = ".exports.lock"


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export.

    Attributes
    ----------
    formats, precisions : every pair of them becomes an artefact.
    kind : "forces" or "energy"; members : give the forces of each member too.
    device : kind of device; force : replace artefacts that exist.
    structures : file of structures for the check, in place of made ones.
    """

    formats: tuple[str, ...] = ("onnx",)
    precisions: tuple[str, ...] = ("fp32",)
    kind: str = "forces"
    members: bool = False
    device: str = "cpu"
    force: bool = False
    structures: Path | None = None

    def specs(self) -> list[Spec]:
        """Return the artefacts, each once, in the order asked for."""
        if self.kind not in OUTPUTS:
            raise UsageError(f"kind {self.kind!r} is none of {', '.join(OUTPUTS)}")
        pairs = dict.fromkeys(product(self.formats, self.precisions))
        return [Spec(f, p, self.kind, self.members, self.device) for f, p in pairs]


@dataclass(frozen=True)
class ExportOutcome:
    """The outcome of one artefact: "written", "kept" (it existed), or "failed" with the reason."""

    key: str
    state: str
    entry: ExportEntry | None
    seconds: float
    reason: str = ""


def export_gfm(
    folder: str | Path,
    options: ExportOptions,
    say: Callable[[str], None],
    done: Callable[[ExportOutcome], None] | None = None,
) -> list[ExportOutcome]:
    """Export an ensemble; artefacts that fail their check are not written.

    say : called with a line of text before each step. done : called with each outcome as soon as it is known.

    Raises
    ------
    AtomSieveError
        if the folder is no ensemble, is damaged, or another export is at work in it.
    """
    place = Path(folder)
    wanted = options.specs()
    choose_device(options.device)
    ensemble, manifest = load_gfm(place)
    specs = [replace(spec, default_head=manifest.default_head) for spec in wanted]
    identity = weights_id(place)
    with PathLock(place / LOCK):
        manifest = read_manifest(place)
        todo = [s for s in specs if options.force or not _is_current(place, manifest, s)]
        outcomes = [ExportOutcome(s.key, "kept", manifest.exports[s.key], 0.0) for s in specs if s not in todo]
        if done:
            for outcome in outcomes:
                done(outcome)
        if todo:
            say(f"reference in FP64 for the check of {len(todo)} artefacts")
            checks = fidelity.make_checks(manifest, options.structures)
            exact = fidelity.evaluate_reference(ensemble, checks)
            for spec in todo:
                say(f"{spec.key}: lowering")
                outcomes.append(_export(place, ensemble, manifest, spec, identity, checks, exact, say))
                if done:
                    done(outcomes[-1])
            write_report(place)
    order = [s.key for s in specs]
    return sorted(outcomes, key=lambda o: order.index(o.key))


def _is_current(folder: Path, manifest: EnsembleManifest, spec: Spec) -> bool:
    """Return whether an artefact exists, undamaged, of this ensemble and with the outputs asked for."""
    entry = manifest.exports.get(spec.key)
    if entry is None or not same_weights(folder, entry.ensemble_id):
        return False
    if spec.members and spec.kind == "forces" and "forces_members" not in entry.outputs:
        return False
    try:
        check_export(folder, entry)
    except DataError:
        return False
    return True


def _export(
    folder: Path,
    ensemble: Ensemble,
    manifest: EnsembleManifest,
    spec: Spec,
    identity: str,
    checks: fidelity.Checks,
    exact: fidelity.Values,
    say: Callable[[str], None],
) -> ExportOutcome:
    began = time.perf_counter()
    staging = folder / FOLDER / f".new-{spec.key}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        written = import_format(spec.format).write(ensemble, spec, staging, identity)
        lowered = time.perf_counter() - began
        entry = entry_of(ensemble, spec, staging, identity, written)
        trust(sorted(staging.iterdir()))
        say(f"{spec.key}: checking in a fresh process")
        entry, reason = _check(folder, manifest, entry, staging, checks, exact)
        entry.speed["lowering_s"] = round(lowered, 1)
        if reason is not None:
            return ExportOutcome(spec.key, "failed", entry, time.perf_counter() - began, reason)
        _move(folder, entry, staging)
        return ExportOutcome(spec.key, "written", entry, time.perf_counter() - began)
    except AtomSieveError as error:  # one format that does not work here leaves the others their chance
        return ExportOutcome(spec.key, "failed", None, time.perf_counter() - began, str(error))
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check(
    folder: Path,
    manifest: EnsembleManifest,
    entry: ExportEntry,
    place: Path,
    checks: fidelity.Checks,
    exact: fidelity.Values,
) -> tuple[ExportEntry, str | None]:
    """Return the entry with fidelity and speed as measured in a fresh process, and why it fails, if so."""
    found, speed = fidelity.measure_in_process(folder, entry, place, checks)
    compared = fidelity.compare(exact, found, checks)
    entry = entry.model_copy(update={"fidelity": compared, "speed": speed, "machine": describe_processor()})
    return entry, fidelity.find_violation(compared, entry.precision)


def _move(folder: Path, entry: ExportEntry, staging: Path) -> None:
    """Put an artefact in its place. The manifest never names files that are not there."""
    target = folder / FOLDER / entry.key
    for path in staging.iterdir():
        sync_file(path)
    if target.exists():
        record_exports(folder, {entry.key: None})
        shutil.rmtree(target)
    staging.rename(target)
    sync_folder(target.parent)
    record_exports(folder, {entry.key: entry})


def recheck(folder: str | Path, say: Callable[[str], None]) -> list[ExportOutcome]:
    """Measure all artefacts of a folder again, on this machine; those that fail are struck from the manifest."""
    place = Path(folder)
    ensemble, _ = load_gfm(place)
    outcomes = []
    with PathLock(place / LOCK):
        manifest = read_manifest(place)
        checks = fidelity.make_checks(manifest, None)
        exact = fidelity.evaluate_reference(ensemble, checks)
        for key, entry in manifest.exports.items():
            if entry.device == "cuda" and not torch.cuda.is_available():
                outcomes.append(ExportOutcome(key, "kept", entry, 0.0, "not measured: it needs a GPU"))
                continue
            began = time.perf_counter()
            say(f"{key}: checking in a fresh process")
            try:
                checked, reason = _check(place, manifest, entry, check_export(place, entry), checks, exact)
            except AtomSieveError as error:
                outcomes.append(ExportOutcome(key, "failed", entry, time.perf_counter() - began, str(error)))
                continue
            record_exports(place, {key: None if reason else checked})
            state = "failed" if reason else "written"
            outcomes.append(ExportOutcome(key, state, checked, time.perf_counter() - began, reason or ""))
        write_report(place)
    return outcomes
