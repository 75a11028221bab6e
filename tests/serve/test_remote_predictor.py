"""A remote predictor says what the local one says, by gRPC and HTTP, whatever the batch and however it is cut."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest

from atomsieve.errors import UsageError
from atomsieve.graphs import edge_budget_estimate
from atomsieve.graphs.crowding import estimate_crowded_edges
from atomsieve.predict import Status
from atomsieve.predict.packing import pack
from atomsieve.remote.predictor import RemotePredictor
from atomsieve.remote.transport import Rejected, Unavailable
from atomsieve.structures import StructureBatch
from tests.helpers import copper_oxides

WANTS = (
    {"energy"},
    {"energy", "forces", "spread"},
    {"energy", "stress"},
    {"energy", "forces", "stress", "spread", "force_spread", "members", "energies", "features"},
)


def awkward(seed: int) -> StructureBatch:
    """A ragged batch: crystals, molecules, and structures that get a status; sizes, order and kinds by seed."""
    from ase import Atoms
    from ase.build import molecule

    rng = np.random.default_rng(seed)
    good = copper_oxides(int(rng.integers(1, 12)), seed).to_ase()
    strange = [
        Atoms(),
        Atoms("Cu2", [[0, 0, 0], [0, 0, 1e-3]]),
        Atoms("Au", [[0, 0, 0]]),
        Atoms("Cu", [[np.nan, 0, 0]]),
        Atoms("Cu", [[0, 0, 0]], cell=[2, 0, 0], pbc=True),
        Atoms("Cu4O", rng.normal(scale=2, size=(5, 3)), cell=[7, 8, 9], pbc=[True, False, True]),
        molecule("O2"),
        Atoms("CuO", [[0, 0, 0], [0, 0, 1.8]], info={"charge": float(rng.choice([1, np.inf]))}),
    ]
    images = [*good, *(strange[k] for k in rng.integers(0, len(strange), int(rng.integers(0, 9))))]
    return StructureBatch.from_ase([images[k] for k in rng.permutation(len(images))])


def same(answer, truth, tolerance=1e-9):
    assert answer.head == truth.head and answer.calibrated == truth.calibrated
    assert answer.arrays().keys() == truth.arrays().keys()
    for name, values in truth.arrays().items():
        found = getattr(answer, name)
        assert found.shape == values.shape, name
        if values.dtype.kind == "f":
            np.testing.assert_allclose(found, values, rtol=tolerance, atol=tolerance, err_msg=name)
        else:
            np.testing.assert_array_equal(found, values, err_msg=name)


@pytest.fixture(scope="module")
def remotes(server):
    """Predictors connected by gRPC and by HTTP."""
    with RemotePredictor.connect(server.grpc, head="metal") as g, RemotePredictor.connect(server.http) as h:
        yield {"grpc": g, "http": h}


@pytest.mark.parametrize("way", ["grpc", "http"])
@pytest.mark.parametrize("want", WANTS, ids=["energy", "forces", "stress", "all"])
def test_ragged_batches_get_what_the_local_predictor_says(remotes, local, way, want):
    for seed in range(6):
        batch = awkward(seed)
        head = ("metal", "organic", None)[seed % 3]
        same(remotes[way](batch, want, head=head), local(batch, want, head=head))


@pytest.mark.parametrize("way", ["grpc", "http"])
def test_an_empty_batch_has_empty_arrays(remotes, local, way):
    nothing = copper_oxides(1).slice(0, 0)
    same(remotes[way](nothing), local(nothing))


@pytest.mark.parametrize("way", ["grpc", "http"])
def test_a_batch_that_is_cut_comes_back_in_order(remotes, local, way, monkeypatch):
    remote, batch = remotes[way], copper_oxides(40, seed=3)
    monkeypatch.setattr(remote, "budget", (17, 10**9))
    job = remote._plan_call(batch, {"energy"}, None, None)
    assert len(job.pieces) > 5
    assert all(batch.counts[piece].sum() <= 17 for piece in job.pieces)
    same(remote(batch, WANTS[3]), local(batch, WANTS[3]))


def test_cuts_keep_to_every_limit_of_the_server(remotes, local, monkeypatch):
    remote, batch = remotes["grpc"], copper_oxides(20, seed=1)
    limits = {
        "structures": 3,
        "atoms": 16,
        "bytes": 95 * 2 + 25 * 16,
        "structure_atoms": 7,
        "structure_edges": 10**6,
        "edges": 10**7,
    }
    monkeypatch.setitem(remote.server, "limits", limits)
    job = remote._plan_call(batch, {"energy"}, None, None)
    large = batch.counts > 7
    assert large.any() and not large.all()
    assert np.array_equal(np.concatenate(job.pieces), np.flatnonzero(~large))
    assert all(len(p) <= 3 and batch.counts[p].sum() <= 16 for p in job.pieces)
    assert all(sum(a.nbytes for a in job.arrays(p).values()) <= limits["bytes"] for p in job.pieces)
    found, truth = remote(batch), local(batch, max_structure_atoms=7)
    assert set(found.status[large]) == {Status.TOO_LARGE}
    same(found, truth)
    same(remote(batch, max_structure_atoms=1), local(batch, max_structure_atoms=1))


@pytest.mark.parametrize("way", ["grpc", "http"])
def test_heaps_of_atoms_are_cut_so_that_the_server_takes_them(remotes, local, way):
    from ase import Atoms

    rng = np.random.default_rng(0)
    heaps = [Atoms("Cu400", rng.normal(scale=2.0, size=(400, 3))) for _ in range(500)]
    remote, batch = remotes[way], StructureBatch.from_ase([*heaps, Atoms("Cu4000", rng.random((4000, 3)))])
    job = remote._plan_call(batch, {"energy"}, None, None)
    assert np.array_equal(np.concatenate(job.pieces), np.arange(500)), "the last is too crowded for the server"
    usual, crowded = edge_budget_estimate(batch, remote.cutoff), estimate_crowded_edges(batch, remote.cutoff)
    limit = remote.server["limits"]["edges"]
    assert all(crowded[piece].sum() <= limit for piece in job.pieces) and crowded[:-1].max() > 2 * usual[:-1].max()
    batches = pack(usual[:-1], batch.counts[:-1], *remote.budget)
    assert len(job.pieces) == len(batches), "the estimate of crowds cuts nothing that is within the limits"
    few = batch.slice(496, 501)
    found = remote(few, {"energy"}, head="metal")
    assert found.status[-1] == Status.TOO_LARGE
    np.testing.assert_allclose(found.energy[:-1], local(few.slice(0, 4), {"energy"}, head="metal").energy, rtol=1e-9)


def test_it_is_described_as_the_local_one(remotes, local):
    remote = remotes["http"]
    for name in (
        "heads",
        "default_head",
        "head",
        "ensemble_id",
        "members",
        "kind",
        "cutoff",
        "precision",
        "backend",
        "why",
    ):
        assert getattr(remote, name) == getattr(local, name), name
    for name in ("artefact", "outputs", "choices", "precisions", "budget"):
        assert getattr(remote.capabilities, name) == getattr(local.capabilities, name), name
    assert remote.device == str(local.device)
    for head in local.heads:
        assert remote.elements(head) == local.elements(head)
        assert remote.is_calibrated(head) == local.is_calibrated(head)
        np.testing.assert_array_equal(remote.references(head), local.references(head))
    assert local.describe().items() <= remote.describe().items()
    assert remotes["grpc"].head == "metal"


def test_wrong_names_are_refused_as_by_the_local_one(remotes, local):
    batch = copper_oxides(1)
    for wrong in ({"want": {"enrgy"}}, {"head": "metall"}):
        with pytest.raises(UsageError) as here:
            local(batch, **wrong)
        with pytest.raises(UsageError) as there:
            remotes["grpc"](batch, **wrong)
        assert str(there.value) == str(here.value)


@pytest.mark.parametrize("way", ["grpc", "http"])
def test_copies_share_connections_and_pickles_connect_again(remotes, local, way):
    remote, batch = remotes[way], copper_oxides(2)
    assert copy.deepcopy(remote) is remote
    with pickle.loads(pickle.dumps(remote)) as again:
        assert again is not remote and again.head == remote.head
        same(again(batch, head="metal"), local(batch, head="metal"))


def test_a_pickle_refuses_another_ensemble(remotes):
    rebuild, (given, head, _) = remotes["grpc"].__reduce__()
    with pytest.raises(UsageError, match="another ensemble"):
        rebuild(given, head, "0" * 64)


@pytest.mark.parametrize("way", ["grpc", "http"])
def test_a_server_of_another_ensemble_rejects_the_request(remotes, way, monkeypatch):
    monkeypatch.setattr(remotes[way], "ensemble_id", "0" * 64)
    with pytest.raises(Rejected, match=r"holds ensemble \w{12}, the request is for 000000000000; connect anew"):
        remotes[way](copper_oxides(1))


def test_another_process_is_told_to_connect_itself(remotes, monkeypatch):
    monkeypatch.setattr(remotes["grpc"]._workers, "process", 1)
    with pytest.raises(UsageError, match="connect in each process"):
        remotes["grpc"](copper_oxides(1))


@pytest.mark.parametrize("http", [False, True], ids=["grpc", "http"])
def test_an_unknown_model_is_an_error_at_once(server, http):
    with pytest.raises(Rejected, match="gfmm"):
        RemotePredictor.connect(server.http if http else server.grpc, model="gfmm")


def test_endpoints_with_a_typo():
    for wrong in ("grcp://h:8001", "grpc://h:80010000", "grpc://h1:8001,,h2", "", "http://h/v2/models"):
        with pytest.raises(UsageError, match="no endpoint"):
            RemotePredictor.connect(wrong)
    with pytest.raises(UsageError, match="named twice"):
        RemotePredictor.connect("grpc://h1:8001,h1:8001")


def test_nobody_at_home():
    from atomsieve.serve.server.process import find_free_ports

    ports = find_free_ports(2)
    with pytest.raises(Unavailable, match=f"no endpoint answers.*{ports[0]}.*{ports[1]}"):
        RemotePredictor.connect(f"grpc://127.0.0.1:{ports[0]},http://127.0.0.1:{ports[1]}", deadline=2)


def test_no_client_needs_torch():
    code = (
        "import sys\n"
        "import atomsieve.remote.predictor, atomsieve.remote.async_predictor\n"
        "import atomsieve.serve.check, atomsieve.screen.run\n"
        "import atomsieve.predict.status\n"
        "print([m for m in ('torch', 'adios2', 'e3nn', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
