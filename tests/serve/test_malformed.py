"""Whatever is wrong with a request, its sender alone is told so, with a status of the 400 class and how to mend it."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from atomsieve.remote.transport import DeadlineExceeded, Rejected
from atomsieve.remote.wire import request_arrays
from atomsieve.serve.model.engine import Engine
from atomsieve.serve.model.request import Refused
from atomsieve.serve.model.settings import Limits, Settings
from tests.helpers import copper_oxides
from tests.serve.triton import until_at_work

GOOD = request_arrays(copper_oxides(2))
OUT = ["status", "energy"]


def changed(**arrays):
    return {k: v for k, v in {**GOOD, **arrays}.items() if v is not None}


S, N = GOOD["n_atoms"].shape[1], GOOD["numbers"].shape[1]
COUNTS = GOOD["n_atoms"]
MALFORMED = {
    "sum": (changed(n_atoms=COUNTS + 1), {}, [f"n_atoms adds up to {N + S}", f"numbers has {N}"]),
    "negative": (changed(n_atoms=np.array([[-1, N + 1]])), {}, ["n_atoms holds -1", f"0 to {N}"]),
    "huge count": (changed(n_atoms=np.array([[2**62, 2**62]])), {}, [f"holds {2**62}"]),
    "overflowing": (changed(n_atoms=np.array([[2**63 - 1, N + 1]])), {}, [f"holds {2**63 - 1}"]),
    "missing": (changed(positions=None), {}, ["positions"]),
    "atoms": (changed(positions=GOOD["positions"][:, :-1]), {}, [f"positions has {N - 1} entries", f"N = {N}"]),
    "structures": (changed(cell=GOOD["cell"][:, :1]), {}, ["cell has 1 entries", f"S = {S}"]),
    "cell alone": (changed(pbc=None), {}, ["cell is given without pbc", "both"]),
    "pbc": (changed(pbc=GOOD["pbc"] + 7), {}, ["pbc holds 8, allowed are 0 to 1"]),
    "numbers": (changed(numbers=GOOD["numbers"] + 256), {}, ["numbers holds", "allowed are 0 to 255"]),
    "charge": (changed(charge=np.full((1, S), np.inf, np.float32)), {}, ["charge must be finite", "inf"]),
    "head": (changed(head=np.full((1, S), 99, np.int32)), {}, ["head holds 99", "0 to 1 (organic, metal)"]),
    "head below": (changed(head=np.full((1, S), -2, np.int32)), {}, ["head holds -2"]),
    "batch axis": ({k: np.concatenate([v, v]) for k, v in GOOD.items()}, {}, ["must be 1, got 2"]),
    "dims": (changed(positions=np.zeros((1, N, 4))), {}, ["positions", "3"]),
    "rank": (changed(positions=np.zeros((1, N * 3))), {}, ["positions"]),
    "head name": (GOOD, {"head": "metall"}, ["unknown head 'metall'", "did you mean 'metal'", "organic"]),
    "head type": (GOOD, {"head": 3}, ["unknown head '3'"]),
    "alone": (GOOD, {"alone": "maybe"}, ["alone must be true or false", "maybe"]),
    "parameter": (GOOD, {"haed": "metal"}, ["unknown parameter 'haed'", "did you mean 'head'"]),
    "ensemble": (GOOD, {"ensemble_id": "0" * 64}, ["the request is for 000000000000", "connect anew"]),
    "long name": (GOOD, {"head": "x" * 5000}, ["unknown head 'xxx"]),
    "long parameter": (GOOD, {"x" * 9000: True}, ["unknown parameter 'xxx", "allowed: alone, ensemble_id, head"]),
    "long parameters": (GOOD, {"x" * 9000: "y" * 9000}, ["characters, allowed are 16384", "head"]),
    "no axes": (changed(n_atoms=np.zeros((0, 0), np.int64)), {}, ["n_atoms"]),
}


@pytest.mark.parametrize("http", [False, True], ids=["grpc", "http"])
@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request_is_told_what_is_wrong(server, http, name):
    arrays, parameters, says = MALFORMED[name]
    with server.transport(http=http) as transport:
        with pytest.raises(Rejected) as error:
            transport.infer("gfm", arrays, OUT, parameters)
        assert "Traceback" not in str(error.value) and "site-packages" not in str(error.value)
        for part in says:
            assert part in str(error.value)
        assert transport.infer("gfm", GOOD, OUT)["status"].tolist() == [0, 0]


@pytest.mark.parametrize("http", [False, True], ids=["grpc", "http"])
def test_unknown_names_and_types_are_refused(server, http):
    from atomsieve.remote.wire import INPUTS

    with server.transport(http=http) as transport:
        for model, outputs in (("gfn", OUT), ("../gfm", OUT), ("gfm", ["energies_of_all"]), ("", OUT)):
            with pytest.raises(Rejected):
                transport.infer(model, GOOD, outputs)
        with pytest.raises(Rejected):
            transport.infer("gfm", GOOD, OUT, version="7")
        with pytest.raises(Rejected):
            transport.infer("gfm", GOOD, OUT, version="../1")
        wrong = transport._module.InferInput("numbers", [1, N], "INT64")
        wrong.set_data_from_numpy(GOOD["numbers"].astype(np.int64))
        right = [transport._module.InferInput(n, list(v.shape), INPUTS[n].datatype) for n, v in GOOD.items()]
        for tensor, values in zip(right, GOOD.values(), strict=True):
            tensor.set_data_from_numpy(values)
        with pytest.raises(Rejected, match="INT32"):
            transport._call(
                transport._client.infer, "gfm", [t if t.name() != "numbers" else wrong for t in right], seconds=10.0
            )


def test_a_bad_request_does_not_fail_those_computed_with_it(server, local):
    """Many threads at once, behind a long request, so that good and bad ones come to the model together."""
    long, good = copper_oxides(200, seed=3).take(np.arange(20_000) % 200), copper_oxides(4, seed=4)
    truth = local(good, {"energy"}, head="metal").energy
    before, found = len(server.events("batch")), {}

    def ask(k, arrays):
        with server.transport() as transport:
            try:
                found[k] = transport.infer("gfm", arrays, OUT, {"head": "metal"})
            except Rejected as error:
                found[k] = error

    threads = [threading.Thread(target=ask, args=(-1, request_arrays(long)))]
    until_at_work(server, threads[0])
    for k in range(24):
        threads.append(
            threading.Thread(target=ask, args=(k, changed(n_atoms=COUNTS + 1) if k % 3 == 0 else request_arrays(good)))
        )
        threads[-1].start()
    for thread in threads:
        thread.join()
    for k in range(24):
        if k % 3 == 0:
            assert isinstance(found[k], Rejected)
        else:
            np.testing.assert_allclose(found[k]["energy"], truth, rtol=1e-9)
    batches = server.events("batch")[before:]
    assert any(b["errors"].get("invalid") and b["structures"] for b in batches), "none were computed together"


def test_a_request_that_was_given_up_is_not_computed(server):
    long = copper_oxides(200, seed=5).take(np.arange(12_000) % 200)  # seconds of work
    short, answered = request_arrays(copper_oxides(13)), []

    def ask():
        with server.transport() as transport:
            answered.append(transport.infer("gfm", request_arrays(long), OUT, {"head": "metal"}, seconds=600))

    def mark(transport, size):
        """Send a request of this size and wait until the log has come to it; return how many batches the log holds."""
        known = len(server.events("batch"))
        transport.infer("gfm", request_arrays(copper_oxides(size)), OUT, {"head": "metal"})
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            sizes = [b["structures"] for b in server.events("batch")]
            if size in sizes[known:]:
                return known + sizes[known:].index(size) + 1
            time.sleep(0.05)
        raise AssertionError(f"no batch of {size} in the log: {sizes[known:]}")

    busy = threading.Thread(target=ask)
    with server.transport() as transport:
        before = mark(transport, 17)
        until_at_work(server, busy)
        with pytest.raises(DeadlineExceeded):
            transport.infer("gfm", short, OUT, {"head": "metal"}, seconds=0.2)
        busy.join()
        after = mark(transport, 19)
    assert len(answered) == 1
    assert sum(b["structures"] for b in server.events("batch")[before:after]) == len(long) + 19


# -- the engine alone ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(local):
    """An engine with narrow limits."""
    return Engine(local, Settings(precision="fp64", limits=Limits(structures=3, atoms=20, bytes=2000, edges=900)))


@pytest.mark.parametrize(
    ("n_atoms", "says"),
    [
        ([1] * 4, "4 structures, allowed are 3"),
        ([21], "21 atoms, allowed are 20"),
        ([40] * 2, "2256 bytes, allowed are 2000"),
    ],
)
def test_limits_name_themselves(small, n_atoms, says):
    atoms = sum(n_atoms)
    rng = np.random.default_rng(0)
    arrays = {
        "n_atoms": np.array([n_atoms]),
        "numbers": np.full((1, atoms), 29, np.int32),
        "positions": rng.uniform(0, 30, (1, atoms, 3)),
    }
    refused = small.read(arrays, {}, {"energy"})
    assert isinstance(refused, Refused) and refused.kind == "too_large" and says in refused.message


def test_crowded_structures_are_bounded_before_memory_is(local):
    """Few atoms, but neighbours without end: none of these may reach the neighbour list."""
    rng = np.random.default_rng(1)
    engine = Engine(local, Settings(precision="fp64"))

    def ask(positions, cell=None, pbc=(0, 0, 0), copies=1):
        atoms = len(positions)
        arrays = {
            "n_atoms": np.full((1, copies), atoms),
            "numbers": np.full((1, atoms * copies), 29, np.int32),
            "positions": np.tile(positions, (copies, 1))[None],
        }
        if cell is not None:
            arrays |= {
                "cell": np.tile(cell, (1, copies, 1, 1)),
                "pbc": np.tile(np.array(pbc, np.int32), (1, copies, 1)),
            }
        read = engine.read(arrays, {}, {"status", "energy"})
        [answer] = engine([read])
        return answer.kind if isinstance(answer, Refused) else answer["status"].tolist()

    heap = rng.uniform(0, 2, (20_000, 3))
    assert ask(heap) == [4]
    assert ask(np.concatenate([[[1e15, 0, 0]], heap[1:]])) == [4]
    assert ask(heap[:5000] + rng.integers(-9, 9, (5000, 3)) * 200.0, np.eye(3) * 200, (1, 1, 1)) == [4]
    assert ask(rng.uniform(0, 3, (20, 3)), np.diag([0.01, 50, 50]), (1, 0, 0), 1000) == "too_large"
    assert ask(np.zeros((1, 3)), np.eye(3) * 1e-3, (1, 1, 1)) == [4]
    stack = np.arange(3000)[:, None] * [0, 0, 0.7]
    assert ask(stack, np.array([[10, 0, 0], [10, 0.002, 0], [0, 0, 1]]), (1, 1, 0)) == [4]
    assert engine.work.evaluations == 0
    for size in (1e-300, 1e-3, 1e300, np.nan, np.inf):
        for pbc in ((1, 1, 1), (1, 0, 0)):
            assert ask(np.array([[0.0, 0, 0], [1.0, 2, 0]]), np.eye(3) * size, pbc) != [0] or size == 1e300
    for place in (1e300, -1e300, np.nan, np.inf):
        assert ask(np.array([[0.0, 0, 0], [place, 0, 0]])) in ([0], [1], [11])


def test_the_estimate_of_crowded_structures_is_no_less_than_a_tenth_of_the_truth():
    from atomsieve.graphs import count_edges, edge_budget_estimate
    from atomsieve.graphs.crowding import estimate_crowded_edges
    from atomsieve.structures import StructureBatch

    rng = np.random.default_rng(2)
    for box, cell, pbc in (
        (1.0, np.eye(3) * 50, (1, 1, 1)),
        (6.0, np.eye(3) * 6, (1, 1, 1)),
        (3.0, np.diag([0.5, 40, 40]), (1, 0, 0)),
        (4.0, np.diag([1.5, 1.5, 40]), (1, 1, 0)),
        (2.0, np.zeros((3, 3)), (0, 0, 0)),
        (80.0, np.array([[10, 0, 0], [10, 0.02, 0], [0, 0, 1]]), (1, 1, 0)),
        (80.0, np.array([[0, 0.5, 9], [3, 3, 3], [0, 1, 18.5]]), (1, 0, 1)),
        (9.0, np.array([[9, 0, 0], [45, 9, 0], [-54, -9.0, 0.05]]), (1, 1, 1)),
        (9.0, np.array([[90, 1, 0], [900, 10, 0.1], [0, 9, 9]]), (1, 1, 1)),
    ):
        batch = StructureBatch(
            ptr=np.array([0, 120]),
            numbers=np.full(120, 29, np.uint8),
            positions=rng.uniform(0, box, (120, 3)),
            cell=cell[None],
            pbc=np.array([pbc], bool),
            id=np.zeros(1, np.int64),
        )
        estimate = np.maximum(edge_budget_estimate(batch, 5.0), estimate_crowded_edges(batch, 5.0))
        assert estimate[0] > 0.1 * count_edges(batch, 5.0)[0]


def test_memory_that_does_not_suffice_is_met_with_smaller_pieces(local, monkeypatch):
    batch = copper_oxides(9, seed=6)
    engine = Engine(local, Settings(precision="fp64"))
    sizes = []

    def scarce(part, want, head):
        sizes.append(len(part))
        if len(part) > 2 or part.n_atoms > 7:
            raise MemoryError
        return local(part, want, head=head)

    class Scarce:
        def __getattr__(self, name):
            return getattr(local, name)

        def __call__(self, part, want, head):
            return scarce(part, want, head)

    engine.predictor = Scarce()
    [answer] = engine([engine.read(request_arrays(batch), {"head": "metal"}, {"status", "energy", "forces"})])
    fits = batch.counts <= 7
    assert answer["status"].tolist() == np.where(fits, 0, 9).tolist() and 0 < fits.sum() < 9
    truth = local(batch, {"energy", "forces"}, head="metal")
    np.testing.assert_allclose(answer["energy"][fits], truth.energy[fits], rtol=1e-9)
    assert np.isnan(answer["energy"][~fits]).all() and max(sizes) == 9


def test_what_goes_wrong_inside_is_a_reference_that_the_log_holds(local, caplog):
    class Broken:
        def __getattr__(self, name):
            return getattr(local, name)

        def __call__(self, part, want, head):
            if (part.numbers == 8).all():
                raise RuntimeError("secret of the house")
            return local(part, want, head=head)

    engine = Engine(local, Settings(precision="fp64"))
    engine.predictor = Broken()
    oxygen = {"n_atoms": np.array([[1]]), "numbers": np.array([[8]], np.int32), "positions": np.zeros((1, 1, 3))}
    copper = {**oxygen, "numbers": np.array([[29]], np.int32)}
    bad, good = engine([engine.read(a, {"head": "metal", "alone": True}, {"status"}) for a in (oxygen, copper)])
    assert isinstance(bad, Refused) and bad.kind == "internal" and "secret" not in bad.message
    reference = bad.message.split("reference ")[1].split(":")[0]
    assert reference in caplog.text and "secret of the house" in caplog.text
    assert good["status"].tolist() == [0] and engine.work.errors == {"internal": 1}


def test_what_is_gathered_stays_within_the_limits_of_one_request(local, monkeypatch):
    """Sizes of what is put on one pile are those that a request may have, and answers fit into so much memory."""
    from itertools import pairwise

    from atomsieve.serve.model import engine as module
    from atomsieve.serve.model.engine import Engine
    from atomsieve.serve.model.settings import Limits, Settings

    seen = []
    evaluate = Engine._evaluate
    monkeypatch.setattr(Engine, "_evaluate", lambda self, group: seen.append(len(group)) or evaluate(self, group))

    def ask(limits, names=("status", "energy")):
        seen.clear()
        engine = Engine(local, Settings(precision="fp64", limits=limits))
        read = [engine.read(request_arrays(copper_oxides(n)), {"head": "metal"}, names) for n in (1, 3, 2, 4, 1)]
        answers = engine(read)
        assert [len(a["status"]) for a in answers] == [1, 3, 2, 4, 1]
        return seen, np.concatenate([a["energy"] for a in answers])

    groups, together = ask(Limits())
    assert groups == [5]
    atoms = [copper_oxides(n).n_atoms for n in (1, 3, 2, 4, 1)]
    for limits in (Limits(structures=4), Limits(atoms=sum(atoms[:2]))):
        groups, apart = ask(limits)
        assert groups[0] == 2 and 3 <= len(groups) < 5 and sum(groups) == 5
        np.testing.assert_allclose(apart, together, rtol=1e-12)
    monkeypatch.setattr(module, "ANSWER_BYTES", 1000)
    groups, _ = ask(Limits(bytes=2000), ("status", "energy", "features"))
    bounds = np.cumsum([0, *groups])
    held = [sum(a * 4 * (local.capabilities.features or 0) for a in atoms[i:j]) for i, j in pairwise(bounds)]
    assert 2 <= len(groups) < 5 and all(h <= 2000 or n == 1 for h, n in zip(held, groups, strict=True))


def test_nothing_but_empty_structures_and_nothing_at_all(server):
    empty = {
        "n_atoms": np.zeros((1, 3), np.int64),
        "numbers": np.zeros((1, 0), np.int32),
        "positions": np.zeros((1, 0, 3)),
    }
    names = ["status", "energy", "forces", "stress", "features", "energy_members", "in_domain"]
    nothing = request_arrays(copper_oxides(1).slice(0, 0))
    for http in (False, True):
        with server.transport(http=http) as transport:
            found = transport.infer("gfm", empty, names)
            assert found["status"].tolist() == [5, 5, 5] and found["forces"].shape == (0, 3)
            assert np.isnan(found["energy"]).all() and found["in_domain"].tolist() == [0, 0, 0]
            found = transport.infer("gfm", nothing, names)
            assert found["status"].shape == (0,) and found["energy_members"].shape[0] == 0
            assert found["features"].shape == transport.infer("gfm", GOOD, ["features"])["features"][:0].shape
            assert transport.infer("gfm", GOOD, []) == {}
