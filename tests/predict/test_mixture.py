"""The mixture of heads: weights from compositions, energies and forces as sums; how it is learned and kept."""

import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch

from atomsieve.errors import DataError, UsageError
from atomsieve.evaluation.fit_mixture import fit_folder_mixture
from atomsieve.gfm import ensemble_id, load_gfm, record_files, save_gfm, weights_id
from atomsieve.gfm.manifest import MIXTURE
from atomsieve.gfm.mixture_file import dump_mixture, read_mixture
from atomsieve.models import Ensemble, HeadSpec, ModelConfig
from atomsieve.predict import Outside, Predictor, Status
from atomsieve.structures import SourceInfo, StructureBatch, write_structures
from atomsieve.uncertainty.head_mixture import Mixture, composition, from_hydragnn_mixture, reference_gap
from atomsieve.uncertainty.head_mixture_fit import fit_mixture
from tests.helpers import copper_oxides

NAMES = ("oxides", "metals", "molecules")
KNOWN = ({8: -4.5, 29: -3.5}, {29: -3.7, 28: -5.0, 8: -4.0}, {1: -13.0, 8: -430.0})
HEADS = [
    HeadSpec(name=n, level_of_theory=f"theory {n}", references=r, scale=0.7 + 0.2 * k, elements=dict.fromkeys(r, 5))
    for k, (n, r) in enumerate(zip(NAMES, KNOWN, strict=True))
]
WANT = {"energy", "forces", "stress", "spread", "members", "energies"}


def net(seed=0, hidden=(16, 8), inputs="fractions", scale=0.3):
    rng, widths = np.random.default_rng(seed), (118, *hidden, len(NAMES))
    maps = [(rng.normal(scale=scale, size=(o, i)), rng.normal(size=o)) for i, o in pairwise(widths)]
    return Mixture(NAMES, tuple(maps), inputs)


def gfm(path, members=2, mixture=None, kind="deep", **config):
    given = {"hidden": 16, "layers": 1, "head_hidden": 8, "cutoff": 4.0, **config}
    ensemble = Ensemble(ModelConfig(**given), HEADS, range(members), kind)
    folder = save_gfm(path, ensemble, default_head="oxides")
    if mixture is not None:
        record_files(folder, {MIXTURE: dump_mixture(mixture)})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return gfm(tmp_path_factory.mktemp("mixture") / "gfm", mixture=net())


def sums(predictor, batch, weights):
    """Energies, forces, ... of each head apart, weighted and added."""
    own = {name: predictor(batch, WANT, head=name) for name in predictor.heads}
    shape = {"forces": batch.structure_of_atom, "atom_energies": batch.structure_of_atom}
    out = {}
    for field in ("energy", "energy_members", "forces", "stress", "atom_energies"):
        total = 0.0
        for k, name in enumerate(predictor.heads):
            values = getattr(own[name], field)
            w = weights[:, k][shape.get(field, slice(None))]
            w = w if field == "energy_members" else w.reshape(-1, *[1] * (values.ndim - 1))
            total = total + np.where(w > 0, w * values, 0.0)
        out[field] = total
    return out


@pytest.mark.parametrize("config", [{}, {"forces": "direct"}, {"kind": "shallow"}, {"max_neighbors": 5}])
def test_it_is_the_weighted_sum_of_its_heads(tmp_path, config):
    predictor = Predictor.load(gfm(tmp_path / "gfm", mixture=net(), **config), head="auto", precision="fp64")
    batch = copper_oxides(6)
    if config.get("forces") == "direct":
        with pytest.raises(UsageError, match="no stress"):
            predictor(batch, WANT)
        return
    found, weights = predictor(batch, WANT), predictor.mixture(batch)
    assert found.head == "auto"
    assert not found.status.any()
    np.testing.assert_allclose(weights.sum(1), 1.0)
    assert (weights[:, :2] > 0.01).all()
    copper = composition(batch.numbers, batch.ptr)[:, 28] > 0
    assert copper.sum() > 3
    assert not weights[copper, 2].any()  # of a head that lacks it
    for field, expected in sums(predictor, batch, weights).items():
        np.testing.assert_allclose(getattr(found, field), expected, atol=1e-10, err_msg=field)
    np.testing.assert_allclose(found.energy_std, found.energy_members.std(0, ddof=1), atol=1e-10)


def test_direct_forces_are_mixed_too(tmp_path):
    predictor = Predictor.load(gfm(tmp_path / "gfm", mixture=net(), forces="direct"), precision="fp64")
    batch = copper_oxides(4)
    found, weights = predictor(batch, {"energy", "forces"}, head="auto"), predictor.mixture(batch)
    each = [predictor(batch, {"energy", "forces"}, head=name).forces for name in NAMES[:2]]
    of_atoms = weights[batch.structure_of_atom]
    np.testing.assert_allclose(found.forces, sum(of_atoms[:, k, None] * f for k, f in enumerate(each)), atol=1e-12)


def test_heads_that_lack_an_element_have_no_weight_and_without_any_head_there_is_no_result(folder):
    predictor = Predictor.load(folder, head="auto", precision="fp64")
    batch = copper_oxides(20)
    batch = batch.take(np.flatnonzero(batch.counts > 3)[:4])
    numbers = [np.full(n, z) for n, z in zip(batch.counts, (8, 28, 1, 29), strict=True)]
    numbers[3][0] = 1  # copper and hydrogen: each is known, to different heads
    batch = batch.replace(numbers=np.concatenate(numbers).astype(np.uint8))
    found, weights = predictor(batch, {"energy"}), predictor.mixture(batch)
    assert (weights > 0).tolist() == [[True] * 3, [False, True, False], [False, False, True], [False] * 3]
    assert found.status.tolist() == [0, 0, 0, Status.UNSEEN_ELEMENT]
    assert found.outside[3] & Outside.UNSEEN_ELEMENT
    assert np.isnan(found.energy[3])
    for head, s in ((1, 1), (2, 2)):
        alone = predictor(batch.take([s]), {"energy"}, head=NAMES[head])
        assert found.energy[s] == pytest.approx(float(alone.energy[0]), abs=1e-12)


def test_fractions_do_not_tell_a_doubled_cell_and_counts_do():
    batch = copper_oxides(3)
    twice = StructureBatch.from_ase([a.repeat((2, 1, 1)) for a in batch.to_ase()])
    known = np.ones((3, 118), bool)
    np.testing.assert_allclose(net()(batch, known), net()(twice, known), atol=1e-14)
    assert np.abs(net(inputs="counts")(batch, known) - net(inputs="counts")(twice, known)).max() > 1e-3


def test_weights_do_not_depend_on_the_batch_and_odd_atoms_have_none():
    batch, known = copper_oxides(5), np.ones((3, 118), bool)
    every = net()(batch, known)
    np.testing.assert_allclose(net()(batch.take([3]), known), every[3:4], rtol=1e-14)
    odd = batch.replace(numbers=np.where(np.arange(batch.n_atoms) == 0, 0, batch.numbers).astype(np.uint8))
    assert not net()(odd, known)[0].any()
    assert net()(odd, known)[1:].any(1).all()
    counts = composition(batch.numbers, batch.ptr)
    assert counts[2].sum() == batch.counts[2]
    assert counts[2, 28] == (batch.slice(2, 3).numbers == 29).sum()


def test_hydragnns_network_is_taken_over_as_it_is():
    torch.manual_seed(0)
    layers = (torch.nn.Linear(118, 12), torch.nn.ReLU(), torch.nn.Linear(12, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3))
    theirs = torch.nn.Sequential(*layers).double()
    state = {f"net.{name}": t for name, t in theirs.state_dict().items()}
    ours, batch = from_hydragnn_mixture(state, NAMES), copper_oxides(4)
    counts = composition(batch.numbers, batch.ptr)
    exact = torch.softmax(theirs(torch.from_numpy(counts)), 1).detach().numpy()
    np.testing.assert_allclose(ours(batch, np.ones((3, 118), bool)), exact, atol=1e-14)
    assert ours.inputs == "counts"
    with pytest.raises(DataError, match=r"net\.2\.bias"):
        from_hydragnn_mixture({n: t for n, t in state.items() if n != "net.2.bias"}, NAMES)


# -- the folder ----------------------------------------------------------------------------------------------------


def test_a_mixture_is_part_of_the_ensemble_but_not_of_its_weights(tmp_path):
    folder = gfm(tmp_path / "gfm")
    before = ensemble_id(folder), weights_id(folder)
    with pytest.raises(UsageError, match=r"holds no learned mixture.*atomsieve mixture"):
        Predictor.load(folder, head="auto")
    record_files(folder, {MIXTURE: dump_mixture(net())})
    assert ensemble_id(folder) != before[0]
    assert weights_id(folder) == before[1]
    predictor = Predictor.load(folder)
    assert predictor.heads == list(NAMES)
    assert predictor.capabilities.choices == (*NAMES, "auto")
    assert predictor.head == "oxides"
    assert predictor.describe()["calibrated"]["auto"] == []
    assert predictor.elements("auto") == [1, 8, 28, 29]
    load_gfm(folder)
    (folder / MIXTURE).write_bytes((folder / MIXTURE).read_bytes()[:-8] + b"12345678")
    with pytest.raises(DataError, match=r"mixture.safetensors was changed"):
        load_gfm(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"nonsense", "is not a mixture"),
        (dump_mixture(Mixture(("a", "b"), (*net().maps[:-1], (np.zeros((2, 8)), np.zeros(2))))), "mixes heads a, b"),
        (dump_mixture(net()).replace(b"net.2.weight", b"net.3.weight"), "must hold net.0.weight"),
        (dump_mixture(net()).replace(b"fractions", b"fractione"), "fractione"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, content, said):
    (tmp_path / MIXTURE).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        read_mixture(tmp_path, NAMES)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / MIXTURE) in str(caught.value)


def test_a_backend_that_mixes_no_heads_says_so(folder):
    class Exported:
        name, precision, why, digest = "onnx", "fp32", "as asked", "0" * 64
        outputs, budget, max_atoms = frozenset(), None, 100

    other = Predictor.load(folder).with_backend(Exported())
    assert other.capabilities.choices == tuple(NAMES)
    assert "auto" not in other.describe()["calibrated"]
    with pytest.raises(UsageError, match="head auto: backend onnx mixes no heads; use --backend native"):
        other(copper_oxides(2), head="auto")


def test_different_zeros_of_energy_are_said(folder):
    predictor = Predictor.load(folder)
    assert predictor.note("oxides") is None
    assert "(an atom of O: 426 eV apart in molecules and metals)" in predictor.note("auto")
    assert reference_gap(HEADS[:2]) == (pytest.approx(0.5), 8, "oxides", "metals")
    assert reference_gap(HEADS[:1]) == (0.0, 0, "", "")


def test_mixtures_that_make_no_sense_are_refused():
    maps = net().maps
    with pytest.raises(UsageError, match="stands for the mixture"):
        Mixture(("auto", "b", "c"), maps)
    with pytest.raises(DataError, match="needs as many outputs, got 3"):
        Mixture(("a", "b"), maps)
    with pytest.raises(DataError, match="must follow on each other"):
        Mixture(NAMES, maps[::-1])
    with pytest.raises(DataError, match="finite"):
        Mixture(NAMES, (*maps[:-1], (maps[-1][0] * np.nan, maps[-1][1])))


# -- learning ------------------------------------------------------------------------------------------------------


def labelled(path, n=150):
    """Structures of two sources: oxides with half oxygen or more, metals with less; one of a source that is no head."""
    rng = np.random.default_rng(0)
    counts = rng.integers(10, 40, n)
    atoms = int(counts.sum())
    numbers = np.where(rng.random(atoms) < np.repeat(rng.random(n), counts), 8, 29).astype(np.uint8)
    batch = StructureBatch(
        ptr=np.concatenate([[0], np.cumsum(counts)]),
        numbers=numbers,
        positions=rng.uniform(0, 20, (atoms, 3)),
        cell=np.zeros((n, 3, 3)),
        pbc=np.zeros((n, 3), bool),
        id=np.arange(n),
    )
    oxygen = composition(numbers, batch.ptr)[:, 7] / batch.counts
    head = np.where(oxygen >= 0.5, 1, 2).astype(np.int32)
    head[0] = 0
    sources = [SourceInfo(name, "made up") for name in ("other", "oxides", "metals")]
    write_structures(path, batch.replace(head=head), sources=sources)
    return batch, head


def test_it_learns_which_head_a_composition_belongs_to(tmp_path):
    folder = gfm(tmp_path / "gfm")
    batch, head = labelled(tmp_path / "data.bp")
    found = fit_folder_mixture(folder, [tmp_path / "data.bp"])
    assert found.about["of_head"] == {"oxides": int((head == 1).sum()), "metals": int((head == 2).sum())}
    assert found.about["cross_entropy"] < 0.5 * found.about["uniform"]
    predictor = Predictor.load(folder, head="auto")
    weights = predictor.mixture(batch)
    assert (weights.argmax(1)[1:] == head[1:] - 1).mean() > 0.95
    assert not weights[:, 2].any()
    content = (folder / MIXTURE).read_bytes()
    assert dump_mixture(found) == content
    fit_folder_mixture(folder, [tmp_path / "data.bp"])
    assert (folder / MIXTURE).read_bytes() == content
    assert json.loads((folder / "manifest.json").read_text())["files"][MIXTURE]["size"] == len(content)
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert Predictor.load(tmp_path / "elsewhere", head="auto").ensemble_id == predictor.ensemble_id


def test_heads_that_are_not_wanted_get_no_weight(tmp_path):
    folder = gfm(tmp_path / "gfm")
    batch, _ = labelled(tmp_path / "data.bp", 60)
    data = tmp_path / "more.bp"
    sources = [SourceInfo(name, "made up") for name in NAMES]
    oxygen = batch.replace(numbers=np.full(batch.n_atoms, 8, np.uint8), head=np.arange(60, dtype=np.int32) % 3)
    write_structures(data, oxygen, sources=sources)
    found = fit_folder_mixture(folder, [data], heads=["oxides", "molecules"])
    assert found.mixed == ["oxides", "molecules"]
    weights = Predictor.load(folder).mixture(oxygen)
    assert (weights > 0).all(0).tolist() == [True, False, True]
    with pytest.raises(UsageError, match="did you mean 'metals'"):
        fit_folder_mixture(folder, [data], heads=["metal"])
    # nickel is known to the head left out alone, copper with oxygen to one of those mixed
    predictor = Predictor.load(folder, head="auto")
    few = copper_oxides(20)
    few = few.take(np.flatnonzero(few.counts > 3)[:2])
    numbers = np.where(few.structure_of_atom == 0, 28, few.numbers).astype(np.uint8)
    unknown = few.replace(numbers=np.where(np.arange(len(numbers)) == few.counts[0], 29, numbers).astype(np.uint8))
    assert (predictor.mixture(unknown) > 0).tolist() == [[False] * 3, [True, False, False]]
    assert predictor(unknown, {"energy"}).status.tolist() == [Status.UNSEEN_ELEMENT, Status.OK]
    assert predictor.elements("auto") == [1, 8, 29]


def test_heads_of_one_composition_are_learned_whatever_is_kept_apart():
    one = np.zeros((3, 118))
    one[0, [0, 5, 7]], one[1, [0, 7]], one[2, [0, 6]] = (6, 2, 1), (2, 1), (3, 1)  # ethanol, water, ammonia
    counts, head = np.repeat(one, 40, axis=0), np.repeat(np.arange(3), 40)
    for seed in (0, 3):  # draws that would keep the only composition of one head apart
        found = fit_mixture(counts, head, np.ones((3, 118), bool), NAMES, seed=seed, hidden=(16,))
        assert found.logits(one).argmax(1).tolist() == [0, 1, 2], seed
        assert found.about["held"] < 120


def test_what_it_cannot_learn_from_is_refused(tmp_path):
    folder, batch = gfm(tmp_path / "gfm"), copper_oxides(5)
    write_structures(tmp_path / "plain.bp", batch)
    with pytest.raises(DataError, match=r"at least two heads .sources there: none"):
        fit_folder_mixture(folder, [tmp_path / "plain.bp"])
    with pytest.raises(UsageError, match="allowed: "):
        fit_folder_mixture(folder, [tmp_path / "plain.bp"], inputs="volumes")
    counts = composition(batch.numbers, batch.ptr)
    with pytest.raises(DataError, match="at least two heads"):
        fit_mixture(counts, np.zeros(5, np.int64), np.ones((3, 118), bool), NAMES)
