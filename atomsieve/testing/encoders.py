"""Checks of encoders: symmetries, derivatives, independence of the batch, awkward cells, exports.

Each `check_*` function takes an untrained ensemble in FP64 (`build_untrained`) and raises AssertionError with the
quantity that is wrong. `atomsieve.testing.EncoderTests` collects them all for pytest, and skips those without a claim
of the encoder.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import SkipTest

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atomsieve.export.artefact import input_arrays
from atomsieve.export.functional import Functional
from atomsieve.export.spec import Spec, entry_of, import_format
from atomsieve.export.trace import trace
from atomsieve.export.trust import trust
from atomsieve.graphs.distance import shortest_distances
from atomsieve.graphs.neighbors import build_graph, count_edges
from atomsieve.models.config import HeadSpec, ModelConfig
from atomsieve.models.encoder import find_encoder_class
from atomsieve.models.ensemble import Ensemble
from atomsieve.models.layers import set_precision
from atomsieve.models.output import EnsembleOutput
from atomsieve.structures.batch import StructureBatch
from atomsieve.testing.cells import AWKWARD_CELLS, crystals, lone_atoms, molecules, one_structure

EXACT = 1e-10
"""Two ways to compute the same in FP64, relative to the largest value (at least 1)."""
STEP = 1e-4
"""Angstrom, or strain: half the distance of the points of a central difference."""
DIFFERENCE = 1e-6
"""Derivatives against central differences in FP64, relative to the largest value (at least 1)."""
SINGLE = 1e-4
"""FP32 against FP64, relative to the largest value (at least 1)."""
SMOOTH = 1e-5
"""eV: the largest change of an energy as an edge enters the cutoff within 1e-6 Angstrom."""
CLOSEST = 0.5
"""Angstrom: awkward cells with nearer atoms are left out; the programs refuse them before a model sees them."""
MOST_EDGES = 30_000
"""Awkward cells with more edges are left out: they test neighbour lists, and take long here."""


def build_untrained(encoder: str, members: int = 2, **config: Any) -> Ensemble:
    """Return an untrained ensemble in FP64 with two heads for the elements O and Cu; `config` as of `ModelConfig`."""
    small = {"hidden": 16, "layers": 2, "head_hidden": 16, "cutoff": 4.5}
    references = {8: -4.5, 29: -3.5}
    heads = [
        HeadSpec(
            name=name, level_of_theory="none", references=references, scale=scale, elements=dict.fromkeys((8, 29), 9)
        )
        for name, scale in (("first", 0.8), ("second", 1.2))
    ]
    model = ModelConfig(encoder=encoder, **{**small, **config})
    return Ensemble(model, heads, range(1, members + 1)).double().eval().requires_grad_(False)


def evaluate(ensemble: Ensemble, batch: StructureBatch, *, head: int = 1, forces: bool = True) -> EnsembleOutput:
    """Evaluate an ensemble on a batch in its own precision, with the virial where it is conservative."""
    config = ensemble.config
    dtype = next(ensemble.parameters()).dtype
    graph = build_graph(batch, config.cutoff, max_neighbors=config.max_neighbors, dtype=dtype)
    state = {n: torch.from_numpy(a) for n, a in batch.present().items() if n in ("charge", "spin")}
    index = torch.full((len(batch),), head, dtype=torch.int64)
    stress = forces and config.forces == "conservative"
    return ensemble(graph, index, **(state if config.charge_spin else {}), forces=forces, stress=stress)


def with_state(batch: StructureBatch, ensemble: Ensemble) -> StructureBatch:
    """Return the batch with charges and multiplicities, if the ensemble needs them."""
    if not ensemble.config.charge_spin:
        return batch
    k = np.arange(len(batch))
    return batch.replace(charge=(k % 3 - 1).astype(np.float32), spin=(k % 2 + 1).astype(np.float32))


def assert_near(found: Any, expected: Any, tolerance: float, what: str) -> None:
    """Compare arrays or tensors within a tolerance of the largest expected value, or of 1 if that is larger."""
    found, expected = (np.asarray(x.detach().numpy() if isinstance(x, Tensor) else x) for x in (found, expected))
    scale = max(float(np.abs(expected).max(initial=0.0)), 1.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale, err_msg=what)


def check_symmetries(ensemble: Ensemble) -> None:
    """Check rotation, reflection, translation, periodic images and the order of atoms.

    Energies must not change; forces and virials must turn with the structure.
    """
    for batch in (crystals(4), molecules(4)):
        batch = with_state(batch, ensemble)
        still = evaluate(ensemble, batch)
        assert still.forces is not None
        assert float(still.forces.abs().max()) > 1e-6, "all forces are zero: nothing was compared"
        for name, turn in (("rotation", _rotation()), ("reflection", _rotation() @ np.diag([1.0, 1.0, -1.0]))):
            moved = evaluate(ensemble, batch.replace(positions=batch.positions @ turn, cell=batch.cell @ turn))
            by = torch.from_numpy(turn)
            assert_near(moved.energy, still.energy, EXACT, f"energy after a {name}")
            assert_near(moved.forces, still.forces @ by, EXACT, f"forces after a {name}")
            if still.virial is not None:
                assert_near(moved.virial, by.T @ still.virial @ by, EXACT, f"virial after a {name}")
        images = np.random.default_rng(1).integers(-2, 3, (batch.n_atoms, 3)).astype(float)
        shift = np.einsum("ni,nij->nj", images, batch.cell[batch.structure_of_atom]) + np.array([0.3, -1.7, 2.9])
        moved = evaluate(ensemble, batch.replace(positions=batch.positions + shift))
        assert_near(moved.energy, still.energy, EXACT, "energy after a translation by periodic images")
        assert_near(moved.forces, still.forces, EXACT, "forces after a translation by periodic images")
        order = np.concatenate([np.arange(a, b)[::-1] for a, b in zip(batch.ptr[:-1], batch.ptr[1:], strict=True)])
        moved = evaluate(ensemble, batch.replace(positions=batch.positions[order], numbers=batch.numbers[order]))
        assert_near(moved.energy, still.energy, EXACT, "energy of atoms in another order")
        assert_near(moved.forces, still.forces[:, order], EXACT, "forces of atoms in another order")


def check_forces(ensemble: Ensemble) -> None:
    """Check conservative forces against central differences of the energy, for every fifth coordinate."""
    for batch in (crystals(3, seed=1), molecules(3, seed=1)):
        batch = with_state(batch, ensemble)
        forces = evaluate(ensemble, batch).forces
        assert forces is not None
        for place in range(0, 3 * batch.n_atoms, 5):
            atom, axis = divmod(place, 3)
            energies = []
            for sign in (1, -1):
                positions = batch.positions.copy()
                positions[atom, axis] += sign * STEP
                energies.append(evaluate(ensemble, batch.replace(positions=positions), forces=False).energy.sum(1))
            exact = (energies[1] - energies[0]) / (2 * STEP)
            assert_near(forces[:, atom, axis], exact, DIFFERENCE, f"force on atom {atom} along axis {axis}")


def check_virial(ensemble: Ensemble) -> None:
    """Check the virial against central differences of the energy by strain."""
    batch = with_state(crystals(3, seed=2), ensemble)
    virial = evaluate(ensemble, batch).virial
    assert virial is not None
    for a, b in ((0, 0), (1, 1), (0, 2), (1, 2)):
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[a, b] += sign * STEP / 2
            strain[b, a] += sign * STEP / 2
            moved = batch.replace(positions=batch.positions @ strain, cell=batch.cell @ strain)
            energies.append(evaluate(ensemble, moved, forces=False).energy)
        assert_near(virial[:, :, a, b], (energies[0] - energies[1]) / (2 * STEP), DIFFERENCE, f"virial {a}{b}")


def check_smooth_cutoff(ensemble: Ensemble) -> None:
    """Check that energy and force do not jump as a third atom enters the cutoff of a pair."""
    cutoff, outputs = ensemble.config.cutoff, []
    for distance in (cutoff - 5e-7, cutoff + 5e-7):
        chain = one_structure([[0, 0, 0], [1.9, 0, 0], [1.9 + distance, 0, 0]], np.zeros((3, 3)), (0, 0, 0), 29)
        outputs.append(evaluate(ensemble, with_state(chain, ensemble)))
    inside, outside = outputs
    assert inside.forces is not None and outside.forces is not None
    assert float((inside.energy - outside.energy).abs().max()) < SMOOTH, "the energy jumps at the cutoff"
    assert float((inside.forces - outside.forces).abs().max()) < SMOOTH, "forces jump at the cutoff"


def check_batch_independence(ensemble: Ensemble) -> None:
    """Check that the results of a structure do not depend on the batch, on its place there, or on earlier calls."""
    batch = with_state(StructureBatch.concatenate([crystals(3), molecules(2), lone_atoms()]), ensemble)
    batch = batch.replace(id=np.arange(len(batch)))
    together = evaluate(ensemble, batch)
    again = evaluate(ensemble, batch)
    assert together.forces is not None and again.forces is not None
    assert torch.equal(together.energy, again.energy), "energies of two equal calls differ"
    assert torch.equal(together.forces, again.forces), "forces of two equal calls differ"
    order = np.arange(len(batch))[::-1].copy()
    turned = evaluate(ensemble, batch.take(order))
    assert_near(turned.energy, together.energy[:, order], EXACT, "energies of structures in another order")
    for s in range(len(batch)):
        alone = evaluate(ensemble, batch.take(np.array([s])))
        atoms = slice(int(batch.ptr[s]), int(batch.ptr[s + 1]))
        assert_near(alone.energy[:, 0], together.energy[:, s], EXACT, f"energy of structure {s} alone")
        assert_near(alone.forces, together.forces[:, atoms], EXACT, f"forces of structure {s} alone")
        if together.virial is not None and alone.virial is not None:
            assert_near(alone.virial[:, 0], together.virial[:, s], EXACT, f"virial of structure {s} alone")


def check_members(ensemble: Ensemble) -> None:
    """Check that stacked members equal members built and evaluated alone, and that they differ from each other."""
    batch = with_state(crystals(3), ensemble)
    together = evaluate(ensemble, batch)
    assert together.forces is not None
    for k, seed in enumerate(ensemble.seeds):
        alone = Ensemble(ensemble.config, ensemble.heads, [seed]).double().eval().requires_grad_(False)
        own = evaluate(alone, batch)
        assert own.forces is not None
        assert_near(own.energy[0], together.energy[k], EXACT, f"energy of member {k} alone")
        assert_near(own.forces[0], together.forces[k], EXACT, f"forces of member {k} alone")
    assert float((together.energy[0] - together.energy[1]).abs().max()) > 1e-6, "members of two seeds are alike"


def check_lone_atoms(ensemble: Ensemble) -> None:
    """Check atoms without any edge: finite energies that depend on the element, no forces, finite gradients."""
    batch = with_state(lone_atoms(), ensemble)
    out = evaluate(ensemble, batch)
    assert torch.isfinite(out.energy).all(), "the energy of a lone atom is not finite"
    assert float((out.energy[:, 0] - out.energy[:, 1]).abs().min()) > 1e-9, "lone atoms of two elements are alike"
    assert out.forces is not None and not out.forces.any(), "a lone atom has a force"
    assert out.virial is None or not out.virial.any(), "a lone atom has a virial"
    assert evaluate(ensemble, StructureBatch.empty()).energy.shape == (ensemble.members, 0)
    learner = copy.deepcopy(ensemble).requires_grad_(True)
    _force_loss(learner, batch).backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in learner.parameters()), (
        "a parameter's gradient is not finite for atoms without neighbours"
    )


def check_awkward_cells(ensemble: Ensemble) -> None:
    """Check that energies and forces of awkward cells are finite and the same alone and in a batch."""
    cutoff = ensemble.config.cutoff
    chosen = []
    for cell in AWKWARD_CELLS.values():
        near = cell.n_atoms and shortest_distances(cell, CLOSEST)[0] < CLOSEST
        if not near and count_edges(cell, cutoff)[0] <= MOST_EDGES:
            chosen.append(cell.replace(numbers=np.full(cell.n_atoms, 29, np.uint8)))
    batch = StructureBatch.concatenate(chosen)
    batch = with_state(batch.replace(id=np.arange(len(batch))), ensemble)
    together = evaluate(ensemble, batch)
    assert together.forces is not None
    assert torch.isfinite(together.energy).all() and torch.isfinite(together.forces).all(), "a result is not finite"
    for s in range(0, len(batch), 4):
        alone = evaluate(ensemble, batch.take(np.array([s])))
        atoms = slice(int(batch.ptr[s]), int(batch.ptr[s + 1]))
        assert_near(alone.energy[:, 0], together.energy[:, s], EXACT, f"energy of awkward cell {s} alone")
        assert_near(alone.forces, together.forces[:, atoms], EXACT, f"forces of awkward cell {s} alone")


def check_double_backward(ensemble: Ensemble) -> None:
    """Check the gradient of a loss on energies and forces by parameters against central differences."""
    learner = copy.deepcopy(ensemble).requires_grad_(True)
    batch = with_state(crystals(2, seed=3), ensemble)
    _force_loss(learner, batch).backward()
    compared = 0.0
    for name, parameter in learner.named_parameters():
        if parameter.grad is None:
            continue
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        place = int(gradient.abs().argmax())
        found, losses = float(gradient[place]), []
        for sign in (1, -1):
            flat[place] += sign * STEP
            losses.append(float(_force_loss(learner, batch).detach()))
            flat[place] -= sign * STEP
        exact = (losses[0] - losses[1]) / (2 * STEP)
        # The difference of two losses carries the curvature of the loss, which grows with its gradient.
        assert abs(found - exact) <= 1e-4 * max(abs(exact), 1.0), f"gradient by {name}: {found}, should be {exact}"
        compared = max(compared, abs(found))
    assert compared > 1e-6, "no parameter has a gradient"


def _force_loss(ensemble: Ensemble, batch: StructureBatch) -> Tensor:
    config = ensemble.config
    graph = build_graph(batch, config.cutoff, max_neighbors=config.max_neighbors, dtype=torch.float64)
    state = {n: torch.from_numpy(a) for n, a in batch.present().items() if n in ("charge", "spin")}
    index = torch.zeros(len(batch), dtype=torch.int64)
    out = ensemble(graph, index, **(state if config.charge_spin else {}), create_graph=True)
    assert out.forces is not None
    return out.energy.pow(2).mean() + out.forces.pow(2).mean()


def check_charge_and_spin(ensemble: Ensemble) -> None:
    """Check that charge and multiplicity change the energy of their own structure alone; for a conditioned model."""
    generator = torch.Generator().manual_seed(1)
    for parameter in ensemble.parameters():  # maps of charge and spin may start at zero
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    batch = molecules(3).replace(charge=np.zeros(3, np.float32), spin=np.ones(3, np.float32))
    neutral = evaluate(ensemble, batch)
    changes = {"charge": np.array([0, 1, 0], np.float32), "spin": np.array([1, 3, 1], np.float32)}
    for name, values in changes.items():
        difference = (evaluate(ensemble, batch.replace(**{name: values})).energy - neutral.energy).abs()
        assert float(difference[:, 1].min()) > 1e-9, f"{name} changes no energy"
        assert float(difference[:, [0, 2]].max()) < EXACT, f"the {name} of one structure changes another"


def check_precisions(ensemble: Ensemble) -> None:
    """Check that FP32 is near FP64, and that BF16 is finite."""
    batch = with_state(crystals(5), ensemble)
    exact = evaluate(ensemble, batch)
    single = evaluate(set_precision(copy.deepcopy(ensemble), "fp32"), batch)
    assert_near(single.energy, exact.energy, SINGLE, "energy in FP32")
    assert_near(single.forces, exact.forces, SINGLE, "forces in FP32")
    low = evaluate(set_precision(copy.deepcopy(ensemble), "bf16"), batch)
    assert low.forces is not None
    assert torch.isfinite(low.energy).all() and torch.isfinite(low.forces).all(), "BF16 is not finite"


def check_configuration(ensemble: Ensemble) -> None:
    """Check that the configuration survives being written, and that the working memory is stated."""
    config = ensemble.config
    assert ModelConfig.model_validate(config.model_dump(mode="json")) == config
    kind = find_encoder_class(config.encoder)
    four, eight = kind.memory(config, 4), kind.memory(config, 8)
    assert min(*four, *eight) >= 0 and eight >= four, "working memory must be positive and grow with the item size"


def export_inputs(ensemble: Ensemble, batch: StructureBatch, head: int = 1) -> dict[str, NDArray[Any]]:
    """Return the inputs of an exported ensemble for a batch, by name."""
    config = ensemble.config
    graph = build_graph(batch, config.cutoff, max_neighbors=config.max_neighbors, dtype=torch.float64)
    functional = Functional(ensemble, precision="fp64", kind="forces")
    return input_arrays(functional.inputs, batch, graph, head)


def check_traced_export(ensemble: Ensemble) -> None:
    """Check the graph that all exports are made of: free of scatter over edges, equal to the ensemble at any size."""
    functional = Functional(ensemble, precision="fp64", kind="forces", members=not ensemble.shallow)
    traced = trace(functional)
    targets = [str(node.target) for node in traced.graph.nodes if node.op == "call_function"]
    odd = {t for t in targets if any(word in t for word in ("index_add", "index_put", "scatter_reduce"))}
    assert not odd, f"the traced graph scatters: {', '.join(sorted(odd))}; use graph.senders and graph.sum_edges"
    for batch in _export_batches(ensemble):
        given = export_inputs(ensemble, batch)
        found = traced(*(torch.from_numpy(a) for a in given.values()))
        outputs = {slot.name: t.numpy() for slot, t in zip(functional.outputs, found, strict=True)}
        _compare_export(outputs, evaluate(ensemble, batch), ensemble, batch)


def check_export(ensemble: Ensemble, format_: str) -> None:
    """Check an artefact of a format, written and opened again, against the ensemble.

    Raises
    ------
    unittest.SkipTest
        if the encoder states that it cannot be exported.
    """
    if not ensemble.encoder.exportable:
        raise SkipTest(f"encoder {ensemble.config.encoder} states that it cannot be exported")
    spec = Spec(format_, "fp64", members=not ensemble.shallow)
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        written = import_format(format_).write(ensemble, spec, room, "0" * 64)
        trust(room.iterdir())  # formats that hold code are opened only if this user made or trusts them
        entry = entry_of(ensemble, spec, room, "0" * 64, written)
        run = import_format(format_).open_session(room, entry, torch.device("cpu"))
        for batch in _export_batches(ensemble):
            _compare_export(run(export_inputs(ensemble, batch)), evaluate(ensemble, batch), ensemble, batch)


def _export_batches(ensemble: Ensemble) -> Iterable[StructureBatch]:
    for batch in (crystals(3), crystals(1, seed=4), molecules(2), lone_atoms()):
        yield with_state(batch, ensemble)


def _compare_export(
    found: dict[str, NDArray[Any]], exact: EnsembleOutput, ensemble: Ensemble, batch: StructureBatch
) -> None:
    energy = exact.energy.numpy() + ensemble.reference_energy(batch.numbers, batch.ptr, 1)
    assert_near(found["energy_members"], energy, 10 * EXACT, "exported energies of members")
    assert_near(found["energy"], energy.mean(0), 10 * EXACT, "exported energy")
    assert exact.forces is not None
    assert_near(found["forces"], exact.forces.mean(0), 10 * EXACT, "exported forces")
    if exact.virial is not None:
        assert_near(found["virial"], exact.virial.mean(0), 10 * EXACT, "exported virial")


def _rotation(seed: int = 0) -> NDArray[np.float64]:
    """Return a random proper rotation [3,3]."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return np.asarray(q * np.sign(np.linalg.det(q)))
