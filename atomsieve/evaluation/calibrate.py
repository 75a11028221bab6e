"""Calibrates an ensemble on labelled structures that were kept from training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from atomsieve.errors import DataError, UsageError
from atomsieve.evaluation.labelled import open_labelled, was_trained_on
from atomsieve.evaluation.residuals import predict_file
from atomsieve.gfm import read_calibration, read_manifest, record_files
from atomsieve.gfm.manifest import CALIBRATION
from atomsieve.predict.predictor import Predictor
from atomsieve.structures.conversion.read_options import ReadOptions
from atomsieve.uncertainty.calibration import Calibration, DataIdentity, HeadCalibration, PropertyCalibration, Residuals
from atomsieve.uncertainty.calibration_fit import FEWEST, calibrate_head
from atomsieve.version import __version__


def make_calibration(
    predictor: Predictor, residuals: Mapping[str, Residuals], data: Sequence[DataIdentity]
) -> Calibration:
    """Fit the heads in `residuals`."""
    return merge_calibration(predictor, {name: calibrate_head(found) for name, found in residuals.items()}, data)


def merge_calibration(
    predictor: Predictor,
    fitted: Mapping[str, HeadCalibration],
    data: Sequence[DataIdentity],
    before: Calibration | None = None,
) -> Calibration:
    """Return the `fitted` calibrations, with those of `before` for other heads and properties."""
    older = Calibration() if before is None else before
    heads = dict(older.heads)
    for name, fit in fitted.items():
        heads[name] = older.head(name).model_copy(update={k: v for k, v in fit if v is not None})
    known = {d.sha256 for d in data}
    keeps = any(heads[name] != fitted.get(name) for name in older.heads)
    return Calibration(
        atomsieve=__version__,
        members=predictor.members,
        ensemble_kind=predictor.kind,
        data=[*(d for d in older.data if keeps and d.sha256 not in known), *data],
        heads={name: fit for name, fit in heads.items() if fit.calibrated},
    )


def calibrate_gfm(
    folder: str | Path,
    data: str | Path,
    *,
    head: str | None = None,
    precision: str = "fp32",
    device: str = "auto",
    allow_training_data: bool = False,
    reading: ReadOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, tuple[HeadCalibration, int]]:
    """Calibrate a gfm/ folder on a file of labelled structures; return per head the fit and the structures it had.

    A head that is not in the file, and a property that the file holds too little of, keep their earlier calibration.

    head : the head for all structures of the file; None takes the head of their source's name.
    allow_training_data : do not refuse a file that the members were trained on.
    reading : how a file that is no dataset is read; it is converted beside the ensemble.

    Raises
    ------
    UsageError
        for a source that is no head, or a file that was trained on.
    DataError
        if no structure of the file has a label and a result.
    """
    check_data(folder, data, head=head, allow_training_data=allow_training_data, reading=reading)
    names = [h.name for h in read_manifest(folder).heads]
    with open_labelled(data, names, head, reading=reading, beside=folder) as (reader, _):
        predictor = Predictor.load(folder, head=head, precision=precision, device=device)
        rows = predict_file(predictor, reader, head, progress)
        identity = DataIdentity(name=Path(data).name, sha256=reader.identity(), structures=len(reader))
    residuals = {name: found.residuals() for name, found in rows.items()}
    if not any(count_usable(found) for found in residuals.values()):
        raise DataError(f"{data} holds no structure with a label and a result; calibration needs at least {FEWEST}")
    fitted = {name: calibrate_head(found) for name, found in residuals.items()}
    record_files(
        folder,
        {CALIBRATION: lambda: merge_calibration(predictor, fitted, [identity], read_calibration(folder)).dumps()},
    )
    return {name: (fitted[name], count_usable(found)) for name, found in residuals.items()}


def check_data(
    folder: str | Path,
    data: str | Path,
    *,
    head: str | None = None,
    allow_training_data: bool = False,
    reading: ReadOptions | None = None,
) -> None:
    """Raise a UsageError for data that `calibrate_gfm` cannot use, before anything is computed or written."""
    manifest = read_manifest(folder)
    names = [h.name for h in manifest.heads]
    with open_labelled(data, names, head, reading=reading, beside=folder, action="calibrated") as (reader, copy):
        if was_trained_on(manifest, reader, copy.content) and not allow_training_data:
            raise UsageError(
                f"{data} was trained on: errors on it are too small to calibrate with; give structures that were kept "
                "from training, or --allow-training-data"
            )
        if len(manifest.members) < 2:
            raise UsageError(f"{folder} has one member, and so no spread to calibrate; train several members")


def count_usable(residuals: Residuals) -> int:
    """Return how many structures have an energy error and a spread."""
    import numpy as np

    return int((np.isfinite(residuals.energy_error) & np.isfinite(residuals.energy_spread)).sum())


def calibration_rows(calibration: Mapping[str, HeadCalibration]) -> list[list[str]]:
    """Return a row of text for each head and property: how it is calibrated, and its coverages (see the headings)."""
    out = []
    for name, fit in calibration.items():
        for what, of in (("energy", fit.energy_per_atom), ("force", fit.force_component)):
            out.append([name, what, *(_cells(of) if of is not None else ["not calibrated"] + ["-"] * 6)])
    return out


HEADINGS = ("head", "property", "structures", "errors", "scale", "groups", "raw", "scaled", "conformal")
"""Headings of `calibration_rows`; the last three are shares within a 90 % interval, each judged on other folds."""


def _cells(fit: PropertyCalibration) -> list[str]:
    shares: list[Any] = [fit.coverage.get(kind) for kind in ("raw", "scale", "conformal")]
    return [
        str(fit.structures),
        str(fit.n),
        f"{fit.scale:.2f}",
        str(len(fit.groups)),
        *("-" if share is None else f"{share:.3f}" for share in shares),
    ]
