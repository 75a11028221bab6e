"""The end of a training fits the domain of every head to the structures that it was trained on."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from atomsieve.errors import AtomSieveError
from atomsieve.gfm.domain_file import dump_domain, read_domain
from atomsieve.gfm.folder import load_gfm
from atomsieve.gfm.manifest import DOMAIN
from atomsieve.predict import Predictor
from atomsieve.structures.dataset.open import open_structures
from atomsieve.train.data.catalog import scan
from atomsieve.train.data.outliers import remove_outliers
from atomsieve.train.data.split import CALIBRATION, TRAIN, assign_parts
from atomsieve.train.fits import fit_domains
from atomsieve.train.run import train
from tests.helpers import copper_oxides, tiny_ensemble
from tests.train.thread_ranks import on_threads


@pytest.mark.parametrize("kept", [0.15, 0.0])
def test_the_domain_holds_what_was_trained_on(small, data_file, kept):
    config = small(split={"train": 0.8 - kept, "val": 0.1, "test": 0.1, "calibration": kept})
    gfm = train(config).gfm
    _, manifest = load_gfm(gfm)
    assert DOMAIN in manifest.files
    found = read_domain(gfm, [h.name for h in manifest.heads], manifest.config.hidden)
    with open_structures(data_file) as reader:
        catalog = scan(config.data, [reader])
        catalog = catalog.take(remove_outliers(catalog, config.cleaning).keep)
        batch = reader.read(0, len(reader))
    part = assign_parts(catalog, config.split, config.data)
    for k, name in enumerate(catalog.sources):
        trained = batch.take(catalog.row[(catalog.head == k) & (part == TRAIN)])
        domain = found[name]
        numbers, counts = np.unique(
            np.unique(trained.structure_of_atom * 256 + trained.numbers) % 256, return_counts=True
        )
        assert domain.elements.tolist() == numbers.tolist()
        assert domain.seen_in.tolist() == counts.tolist()
        held = int(((catalog.head == k) & (part == CALIBRATION)).sum())
        if held >= 20:
            assert domain.held == held
            assert domain.fitted == domain.paired == len(trained)
        else:  # too few to set the limits: a part of what was trained on did
            assert domain.fitted + domain.held == domain.paired == len(trained)
        inside = Predictor.load(gfm)(trained, {"energy"}, head=name).in_domain
        assert inside.mean() > 0.8


def test_ranks_share_the_heads():
    batch = copper_oxides(60)
    store = SimpleNamespace(
        catalog=SimpleNamespace(head=np.arange(60) % 2, sources=["organic", "metal"]), fetch=batch.take
    )
    part = np.full(60, TRAIN, np.int8)
    names, fitted = ["organic", "metal"], {}
    for size in (1, 2, 3):  # with three, one has no head
        every = on_threads(size, lambda group: fit_domains(tiny_ensemble(2), store, part, group, nullcontext()))
        assert all(set(found) == set(names) for found in every)
        own = {dump_domain(found, names) for found in every}
        assert len(own) == 1  # every rank has them all
        fitted[size] = own.pop()
    assert fitted[1] == fitted[2] == fitted[3]


def test_an_error_of_one_rank_is_an_error_of_all():
    def work(group):
        return group.run_and_gather(lambda: 1 // (1 - group.rank))

    first, second, third = on_threads(3, work)
    assert isinstance(second, ZeroDivisionError)
    for other in (first, third):
        assert isinstance(other, AtomSieveError)
        assert "rank 1 failed: ZeroDivisionError" in str(other)
    assert on_threads(2, lambda group: group.run_and_gather(lambda: group.rank)) == [[0, 1], [0, 1]]
