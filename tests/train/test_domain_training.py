"""The end of a training fits the domain of every head to the structures that it was trained on."""

from __future__ import annotations

import numpy as np
import pytest

from atomsieve.models.domain import DOMAIN, read_domain
from atomsieve.models.folder import load_gfm
from atomsieve.predict import Predictor
from atomsieve.structures.reader import open_structures
from atomsieve.train.catalog import scan
from atomsieve.train.clean import clean
from atomsieve.train.run import train
from atomsieve.train.split import CALIBRATION, TRAIN, assign_parts


@pytest.mark.parametrize("kept", [0.15, 0.0])
def test_the_domain_holds_what_was_trained_on(small, data_file, kept):
    config = small(split={"train": 0.8 - kept, "val": 0.1, "test": 0.1, "calibration": kept})
    gfm = train(config).gfm
    _, manifest = load_gfm(gfm)
    assert DOMAIN in manifest.files
    found = read_domain(gfm, [h.name for h in manifest.heads], manifest.config.hidden)
    with open_structures(data_file) as reader:
        catalog = scan(config.data, [reader])
        catalog = catalog.take(clean(catalog, config.cleaning).keep)
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
