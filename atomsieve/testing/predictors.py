"""Checks of predictors against the Protocol `atomsieve.predict.interface.AnyPredictor`.

Each `check_*` function takes a predictor and a batch of structures that it can evaluate, and raises AssertionError that
names the broken promise. `PredictorTests` collects them all for pytest.
"""

from __future__ import annotations

import json

import numpy as np

from atomsieve.errors import AtomSieveError
from atomsieve.graphs.neighbors import build_graph
from atomsieve.predict.interface import AnyPredictor, Capabilities
from atomsieve.predict.prediction import Prediction
from atomsieve.predict.status import Status
from atomsieve.structures.batch import StructureBatch
from atomsieve.testing.cells import crystals

SAME = 1e-4
"""eV and eV/Angstrom: results of one structure in two batches, in FP32; relative to the largest value (at least 1)."""


def check_interface(predictor: AnyPredictor) -> None:
    """Check the attributes, the stated capabilities and the description."""
    assert isinstance(predictor, AnyPredictor), "members of AnyPredictor are missing"
    found = predictor.capabilities
    assert isinstance(found, Capabilities)
    assert predictor.heads and len(set(predictor.heads)) == len(predictor.heads), "heads need different names"
    assert predictor.default_head in predictor.heads
    assert predictor.head in found.choices, "`head` must be one of capabilities.choices"
    assert set(found.choices) <= {*predictor.heads, "auto"}
    assert found.outputs <= {"forces", "stress", "energies", "energy_members", "forces_members"}
    assert found.precisions and all(isinstance(name, str) for name in found.precisions)
    assert predictor.members >= 1 and predictor.kind in ("deep", "shallow")
    assert 0 < predictor.cutoff < 100, "the cutoff is in Angstrom"
    for head in predictor.heads:
        elements = predictor.elements(head)
        assert elements == sorted(set(elements)) and all(1 <= z <= 118 for z in elements)
        assert predictor.references(head).shape == (256,), "references are [256], by atomic number"
        assert isinstance(predictor.is_calibrated(head), bool)
        note = predictor.note(head)
        assert note is None or "\n" not in note, "a note is one line"
    description = json.loads(json.dumps(predictor.describe()))
    assert {"ensemble_id", "heads", "members", "cutoff", "precision"} <= set(description)
    assert isinstance(predictor.costliest(), AnyPredictor)
    assert set(predictor.lost_endpoints()) <= set(found.endpoints)


def check_results(predictor: AnyPredictor, batch: StructureBatch) -> None:
    """Check names, shapes and dtypes of results, and that properties not asked for are None."""
    out = _evaluate(predictor, batch)
    assert out.head == predictor.head
    assert (out.status == Status.OK).all(), f"structures of the test batch got the status {out.status.tolist()}"
    assert out.energy.shape == (len(batch),) and out.energy.dtype == np.float64
    assert np.isfinite(out.energy).all()
    assert out.in_domain.shape == out.outside.shape == (len(batch),)
    if "forces" in predictor.capabilities.outputs:
        assert out.forces is not None and out.forces.shape == (batch.n_atoms, 3) and np.isfinite(out.forces).all()
    light = predictor(batch, {"energy"})
    assert light.forces is None and light.stress is None, "what was not asked for is None"
    assert_near(light.energy, out.energy, "energies without forces")
    spread = predictor(batch, {"energy", "spread"})
    assert spread.energy_std is not None and np.isnan(spread.energy_std).all() == (predictor.members == 1)
    empty = predictor(StructureBatch.empty(), {"energy"})
    assert empty.energy.shape == (0,)


def check_independence(predictor: AnyPredictor, batch: StructureBatch) -> None:
    """Check that results are in input order and that those of a structure do not depend on the batch."""
    together = _evaluate(predictor, batch)
    order = np.arange(len(batch))[::-1].copy()
    turned = _evaluate(predictor, batch.take(order))
    assert_near(turned.energy, together.energy[order], "energies of structures in another order")
    for s in range(min(len(batch), 4)):
        alone = _evaluate(predictor, batch.take(np.array([s])))
        assert_near(alone.energy, together.energy[s : s + 1], f"energy of structure {s} alone")
        if alone.forces is not None and together.forces is not None:
            own = together.forces[batch.ptr[s] : batch.ptr[s + 1]]
            assert_near(alone.forces, own, f"forces of structure {s} alone")


def check_bad_structures(predictor: AnyPredictor, batch: StructureBatch) -> None:
    """Check that a structure that cannot be evaluated gets a status and NaN, and spoils no other."""
    good = _evaluate(predictor, batch)
    positions = batch.positions.copy()
    positions[batch.ptr[1]] = np.nan
    out = _evaluate(predictor, batch.replace(positions=positions))
    assert out.status[1] != Status.OK and np.isnan(out.energy[1]), "positions that are not finite were evaluated"
    rest = np.arange(len(batch)) != 1
    assert (out.status[rest] == Status.OK).all()
    assert_near(out.energy[rest], good.energy[rest], "energies of the other structures")
    limit = int(batch.counts.max()) - 1
    small = predictor(batch, {"energy"}, max_structure_atoms=limit)
    assert ((small.status == Status.TOO_LARGE) == (batch.counts > limit)).all(), "max_structure_atoms was not kept"


def check_heads(predictor: AnyPredictor, batch: StructureBatch) -> None:
    """Check that an unknown head is refused in one line that names the allowed ones."""
    try:
        predictor(batch, {"energy"}, "no such head")
    except AtomSieveError as error:
        text = str(error)
        assert "\n" not in text and predictor.heads[0] in text, f"the error names no head: {text}"
    else:
        raise AssertionError("an unknown head was accepted")
    named = predictor(batch, {"energy"}, predictor.head)
    assert_near(named.energy, predictor(batch, {"energy"}).energy, "energies of the default head, named")


def check_submit(predictor: AnyPredictor, batch: StructureBatch) -> None:
    """Check that a submitted batch gives the results of a call, also when its result is asked for twice."""
    called = _evaluate(predictor, batch)
    pending = predictor.submit(batch, _choose_outputs(predictor))
    for _ in range(2):
        assert_near(pending.result().energy, called.energy, "energies of a submitted batch")
    predictor.submit(batch, {"energy"}).cancel()


def check_graph_builder(predictor: AnyPredictor, batch: StructureBatch) -> None:
    """Check that a graph builder is used, where the predictor states that it takes one."""
    if not predictor.capabilities.graphs:
        return
    calls = []

    def build(*arguments: object, **named: object) -> object:
        calls.append(named)
        return build_graph(*arguments, **named)  # type: ignore[arg-type]

    out = predictor(batch, {"energy"}, build=build)  # type: ignore[arg-type]
    assert calls, "capabilities.graphs is set, and the builder was not used"
    assert_near(out.energy, predictor(batch, {"energy"}).energy, "energies with a graph builder")


def assert_near(found: np.ndarray | None, expected: np.ndarray | None, what: str) -> None:
    """Compare arrays within `SAME`; NaN equals NaN."""
    assert found is not None and expected is not None, f"{what}: missing"
    scale = max(float(np.nanmax(np.abs(expected), initial=0.0)), 1.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=SAME * scale, err_msg=what)


def _choose_outputs(predictor: AnyPredictor) -> set[str]:
    return {"energy"} | (predictor.capabilities.outputs & {"forces"})


def _evaluate(predictor: AnyPredictor, batch: StructureBatch) -> Prediction:
    return predictor(batch, _choose_outputs(predictor))


class PredictorTests:
    """All checks of a predictor as tests that pytest collects from a subclass, which defines `make_predictor`."""

    def make_predictor(self) -> AnyPredictor:
        """Return the predictor under test."""
        raise NotImplementedError(f"{type(self).__name__} defines no make_predictor")

    def make_batch(self, predictor: AnyPredictor) -> StructureBatch:
        """Return at least two structures of different sizes that the predictor can evaluate."""
        elements = tuple(predictor.elements(predictor.head if predictor.head != "auto" else predictor.default_head))
        batch = crystals(5, elements[:3])
        if predictor.capabilities.charge_spin:
            batch = batch.replace(charge=np.zeros(len(batch), np.float32), spin=np.ones(len(batch), np.float32))
        return batch

    def test_interface(self) -> None:
        check_interface(self.make_predictor())

    def test_results(self) -> None:
        predictor = self.make_predictor()
        check_results(predictor, self.make_batch(predictor))

    def test_results_do_not_depend_on_the_batch(self) -> None:
        predictor = self.make_predictor()
        check_independence(predictor, self.make_batch(predictor))

    def test_structures_that_cannot_be_evaluated(self) -> None:
        predictor = self.make_predictor()
        check_bad_structures(predictor, self.make_batch(predictor))

    def test_heads(self) -> None:
        predictor = self.make_predictor()
        check_heads(predictor, self.make_batch(predictor))

    def test_submitted_batches(self) -> None:
        predictor = self.make_predictor()
        check_submit(predictor, self.make_batch(predictor))

    def test_graph_builder(self) -> None:
        predictor = self.make_predictor()
        check_graph_builder(predictor, self.make_batch(predictor))
