"""Exported artefacts of tiny ensembles, made without the long comparison of `atomsieve export`."""

from __future__ import annotations

from pathlib import Path

from atomsieve.export.spec import Spec, entry_of, import_format
from atomsieve.export.trust import trust
from atomsieve.gfm import load_gfm, record_exports, weights_id

KINDS = ("onnx", "torchscript")


def add_export(gfm: Path, kind: str, precision: str = "fp64") -> Path:
    """Add an artefact to an ensemble folder and return its folder."""
    ensemble, manifest = load_gfm(gfm)
    spec = Spec(kind, precision, default_head=manifest.default_head)
    place = gfm / "exports" / spec.key
    place.mkdir(parents=True)
    written = import_format(kind).write(ensemble, spec, place, weights_id(gfm))
    record_exports(gfm, {spec.key: entry_of(ensemble, spec, place, weights_id(gfm), written)})
    trust(place.iterdir())
    return place
