"""Sources that teach next to nothing: a single structure, forces that are all zero."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from rich.console import Console

from atomsieve.gfm.folder import load_gfm
from atomsieve.structures import StructureBatch
from atomsieve.structures.dataset.writer import write_structures
from atomsieve.structures.source import SourceInfo
from atomsieve.train.checkpoint import load_tensors
from atomsieve.train.config import SplitSection
from atomsieve.train.data.split import TRAIN, assign_parts
from atomsieve.train.run import train
from tests.train.test_cleaning_split import catalog_of
from tests.train.train_samples import SOURCES, crystals, labelled


def write_with(path, extra):
    """Write the usual sources and a third, `sparse`, of these structures."""
    usual, sparse = labelled(20, 20), StructureBatch.from_ase(extra)
    rows = np.arange(len(usual), len(usual) + len(sparse))
    sparse = sparse.replace(head=np.full(len(sparse), 2, np.int32), id=rows)
    both = StructureBatch.concatenate([usual, sparse])
    write_structures(path, both, [*SOURCES, SourceInfo("sparse", "EMT")])
    return path


def flatten_forces(atoms):
    atoms.calc.results["forces"] = np.zeros_like(atoms.calc.results["forces"])
    return atoms


NOTES = {
    "single": "sparse: a single structure to train on",
    "flat": "sparse: the forces of all 20 training structures are zero",
}


@pytest.mark.parametrize("case", ["single", "flat"])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_source_of_one_structure_or_of_zero_forces_trains_and_is_named(small, tmp_path, case, kind):
    extra = crystals(1, 9) if case == "single" else [flatten_forces(a) for a in crystals(30, 9)]
    text = io.StringIO()
    config = small(
        data=[{"path": str(write_with(tmp_path / "sparse.bp", extra))}],
        budget={"steps": 12, "eval_every": 4},
        loss={"stress": 0.1},
        optimizer={"kind": kind, "muon_heads": kind == "muon"},
    )
    result = train(config, Console(file=text, width=200))
    assert NOTES[case] in text.getvalue()
    ensemble, manifest = load_gfm(config.output / "gfm")
    assert all(torch.isfinite(p).all() for p in ensemble.parameters())
    _, state = load_tensors(config.output / "runs/000/last.safetensors")
    assert (state["step"], state["skipped"]) == (12, 0)
    assert next(h for h in manifest.heads if h.name == "sparse").scale >= 1.0
    if case == "flat":
        row = result.metrics["val"]["sparse"]
        assert (row["force_baseline"], row["force_ratio"]) == (0.0, None)
        assert row["force_mae"] < 100


@pytest.mark.parametrize("seed", range(6))
def test_the_only_structure_of_a_source_is_trained_on_whatever_chance_says(seed):
    catalog = catalog_of(labelled(20, 1))
    part = assign_parts(catalog, SplitSection(train=0.1, val=0.3, test=0.3, calibration=0.3, seed=seed))
    assert all((part[catalog.head == h] == TRAIN).any() for h in range(2))
