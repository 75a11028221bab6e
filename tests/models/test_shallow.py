"""A shallow ensemble is a deep one whose members hold the same encoder, and its folder says so."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from atomsieve.errors import DataError, UsageError
from atomsieve.gfm import load_gfm, read_manifest, save_gfm
from atomsieve.graphs.neighbors import build_graph
from atomsieve.models import Ensemble, set_precision
from atomsieve.runs.hashing import hash_file
from atomsieve.structures import StructureBatch
from tests.helpers import copper_oxides, tiny_ensemble, tiny_gfm

MEMBERS = 5
STEP = 1e-4
FD_TOLERANCE = 2e-7  # of central differences in FP64 with STEP


def shallow(members=MEMBERS, **config):
    plain = tiny_ensemble(members, **config)
    return Ensemble(plain.config, plain.heads, plain.seeds, "shallow").double()


def as_deep(model):
    """The deep ensemble whose members all hold the encoder of a shallow one."""
    deep = Ensemble(model.config, model.heads, model.seeds).double()
    deep.load_state_dict(
        {n: t.expand(model.members, *t.shape[1:]) if model.is_shared(n) else t for n, t in model.state_dict().items()}
    )
    return deep


def run(model, batch, head=1, **options):
    graph = build_graph(batch, model.config.cutoff, max_neighbors=model.config.max_neighbors, dtype=torch.float64)
    state = {}
    if model.config.charge_spin:
        state = {"charge": torch.tensor([0.0, 1.0, -1.0, 2.0]), "spin": torch.tensor([1.0, 2.0, 1.0, 3.0])}
    return model(graph, torch.as_tensor(head).expand(len(batch)), **state, **options)


def close(a, b):
    return torch.allclose(a, b, atol=1e-10, rtol=0)


CONFIGS = [{}, {"charge_spin": True}, {"max_neighbors": 6}, {"hidden": 12}]


@pytest.mark.parametrize("config", CONFIGS, ids=["plain", "conditioned", "truncated", "no-kernels"])
@pytest.mark.parametrize("head", [1, [1, 0, 1, 0]], ids=["one-head", "heads"])
def test_it_equals_deep_members_with_one_encoder(config, head):
    model = shallow(**config)
    deep, batch = as_deep(model), copper_oxides(4)
    if head != 1:
        batch = batch.replace(numbers=np.full(batch.n_atoms, 8, np.uint8))  # oxygen is known to both
    exact = run(deep, batch, head, stress=True)
    mean = run(model, batch, head, stress=True)
    some = run(model, batch, head, stress=True, force_members=[3, 1, 1])
    every = run(model, batch, head, force_members=range(MEMBERS))
    assert close(mean.energy, exact.energy)
    assert close(mean.atom_energy, exact.atom_energy)
    assert close(mean.features, exact.features[:1])
    assert mean.forces.shape == (1, batch.n_atoms, 3)
    assert close(mean.forces[0], exact.forces.mean(0))
    assert close(mean.virial[0], exact.virial.mean(0))
    assert close(some.forces, exact.forces[[3, 1, 1]])
    assert close(some.virial, exact.virial[[3, 1, 1]])
    assert close(every.forces, exact.forces)
    assert close(every.energy, exact.energy)
    assert float(exact.forces.std(0).max()) > 1e-3  # the members differ
    energies = run(model, batch, head, forces=False)
    assert energies.forces is None
    assert close(energies.energy, exact.energy)


def test_direct_forces_too():
    model = shallow(forces="direct")
    deep, batch = as_deep(model), copper_oxides(4)
    exact = run(deep, batch).forces
    assert close(run(model, batch).forces[0], exact.mean(0))
    assert close(run(model, batch, force_members=[4, 0]).forces, exact[[4, 0]])


def test_forces_of_the_mean_are_minus_the_gradient_of_the_mean_energy():
    model, batch = shallow().requires_grad_(False), copper_oxides(3)
    forces = run(model, batch).forces[0]
    for atom, axis in ((0, 0), (3, 1), (batch.n_atoms - 1, 2)):
        energies = []
        for sign in (1, -1):
            positions = batch.positions.copy()
            positions[atom, axis] += sign * STEP
            energies.append(run(model, batch.replace(positions=positions), forces=False).energy.mean(0).sum())
        assert float(forces[atom, axis] + (energies[0] - energies[1]) / (2 * STEP)) == pytest.approx(
            0, abs=FD_TOLERANCE
        )
    assert float(forces.abs().max()) > 1e-3


@pytest.mark.parametrize("members", [None, [0, 2]])
def test_parameters_get_the_gradients_of_the_deep_one(members):
    """Through forces too: the encoder's gradient is the sum over its copies."""
    model = shallow(3)
    deep, batch = as_deep(model), copper_oxides(2)
    mine = run(model, batch, create_graph=True, force_members=members)
    theirs = run(deep, batch, create_graph=True)
    forces = theirs.forces.mean(0, keepdim=True) if members is None else theirs.forces[members]
    torch.manual_seed(0)
    aim = torch.randn(forces.shape, dtype=torch.float64)
    ((mine.forces - aim) ** 2).sum().add(mine.energy.pow(2).sum()).backward()
    ((forces - aim) ** 2).sum().add(theirs.energy.pow(2).sum()).backward()
    copies = dict(deep.named_parameters())
    for name, p in model.named_parameters():
        theirs_grad = copies[name].grad
        if theirs_grad is None:  # a head that the batch does not use
            assert p.grad is None
            continue
        expected = theirs_grad.sum(0, keepdim=True) if model.is_shared(name) else theirs_grad
        assert torch.allclose(p.grad, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max())), name


def test_member_0_starts_as_member_0_of_the_deep_one_and_decoders_differ():
    model, deep = shallow(3), tiny_ensemble(3).double()
    for name, p in deep.named_parameters():
        assert torch.equal(dict(model.named_parameters())[name][0], p[0]), name
    weights = model.readout.hidden_weight
    assert not torch.allclose(weights[0], weights[1])
    assert sum(p.numel() for p in model.parameters()) < 2 * sum(p[0].numel() for p in deep.parameters())


def test_some_of_the_members_keep_the_encoder():
    model, batch = shallow(), copper_oxides(2)
    part = model.take([4, 1])
    assert (part.kind, part.members, part.encoders) == ("shallow", 2, 1)
    assert close(run(part, batch).energy, run(model, batch).energy[[4, 1]])
    assert close(run(model.take([2]), batch).forces, run(model, batch, force_members=[2]).forces)


def test_wrong_use_is_refused():
    plain = tiny_ensemble(2)
    with pytest.raises(UsageError, match=r"unknown kind of ensemble 'shalow'.*did you mean 'shallow'"):
        Ensemble(plain.config, plain.heads, plain.seeds, "shalow")
    with pytest.raises(UsageError, match="force_members is for a shallow ensemble"):
        run(plain.double(), copper_oxides(2), force_members=[0])
    with pytest.raises(UsageError, match="force_members names no member"):
        run(shallow(), copper_oxides(2), force_members=[])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_lower_precision_stays_near(precision):
    model, batch = shallow(hidden=16), copper_oxides(10)
    exact = run(model, batch).forces
    low = set_precision(shallow(hidden=16), precision)
    graph = build_graph(batch, model.config.cutoff, dtype=torch.float32)
    forces = low(graph, torch.ones(len(batch), dtype=torch.int64)).forces
    error = (forces.double() - exact).pow(2).mean().sqrt() / exact.pow(2).mean().sqrt()
    assert float(error) < (1e-5 if precision == "fp32" else 0.05)


# -- the folder ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    return save_gfm(tmp_path / "gfm", shallow().float(), default_head="metal")


def test_what_was_saved_is_what_is_loaded(folder):
    model, manifest = load_gfm(folder)
    assert (model.kind, manifest.kind, model.members) == ("shallow", "shallow", MEMBERS)
    for name, p in shallow().float().named_parameters():
        assert torch.equal(dict(model.named_parameters())[name], p), name
    assert "5 decoders on one encoder" in (folder / "README.md").read_text()
    assert "shared/weights.safetensors" in manifest.files
    assert all(name.startswith("readout.") for name in load_file(str(folder / "members/003/weights.safetensors")))
    vector = manifest.test_vector["heads"]["metal"]
    inputs = {n: np.array(vector[n]) for n in ("ptr", "numbers", "positions", "cell", "pbc")}
    batch = StructureBatch(**{**inputs, "numbers": inputs["numbers"].astype(np.uint8)}, id=np.arange(3))
    exact = run(as_deep(model.double()), batch)
    np.testing.assert_allclose(exact.forces.mean(0).detach().numpy(), vector["forces"], atol=1e-9)


def test_a_file_that_does_not_fit_is_named_in_one_line(folder, tmp_path):
    for name, wrong in (("shared", {"encoder.embedding": torch.zeros(3)}), ("members/001", {})):
        place = shutil.copytree(folder, tmp_path / name.replace("/", "_"))
        path = place / name / "weights.safetensors"
        save_file({**load_file(str(path)), "odd": torch.zeros(1), **wrong}, str(path))
        manifest = json.loads((place / "manifest.json").read_text())
        manifest["files"][f"{name}/weights.safetensors"] = {"size": path.stat().st_size, "sha256": hash_file(path)}
        (place / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(DataError, match=rf"{name}/weights.safetensors does not fit the model: .*odd") as caught:
            load_gfm(place)
        assert "\n" not in str(caught.value)
    path = folder / "shared" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(DataError, match=r"shared/weights.safetensors was changed"):
        load_gfm(folder)


def test_a_folder_from_before_there_were_kinds_is_deep(tmp_path):
    folder = tiny_gfm(tmp_path / "gfm")
    before, batch = run(load_gfm(folder)[0].double(), copper_oxides(3)), copper_oxides(3)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest.pop("kind") == "deep"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert read_manifest(folder).kind == "deep"
    after = run(load_gfm(folder)[0].double(), batch)
    assert torch.equal(after.energy, before.energy)
    assert torch.equal(after.forces, before.forces)
