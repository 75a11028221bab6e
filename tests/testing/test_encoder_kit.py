"""Every encoder of this package, and a toy from outside, goes through the public kit; broken ones do not."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch

from atomsieve.models.ensemble import Ensemble
from atomsieve.models.registry import encoder_names
from atomsieve.testing import EncoderTests, encoders
from atomsieve.testing.encoders import build_untrained
from tests.models.entry_points import TOY, install
from tests.models.toy_encoder import ToyEncoder


@pytest.fixture(autouse=True)
def toy_package(tmp_path, monkeypatch):
    broken = {name: f"{__name__}:{kind.__name__}" for name, kind in BROKEN.items()}
    monkeypatch.syspath_prepend(str(install(tmp_path / "site", {**TOY, **broken})))


class TestPaiNN(EncoderTests):
    encoder = "painn"

    @pytest.mark.nightly  # its graph is traced and scripted in every run (export/test_functional.py)
    def test_traced_export(self):
        super().test_traced_export()

    @pytest.mark.nightly  # export/test_onnx.py and test_torchscript.py write and open files in every run
    def test_exported_files(self):
        super().test_exported_files()


class TestDirectPaiNN(EncoderTests):
    encoder = "painn"
    config: ClassVar = {"forces": "direct"}
    formats = ("torchscript",)

    @pytest.mark.nightly  # its graph is traced and scripted in every run (export/test_functional.py)
    def test_traced_export(self):
        super().test_traced_export()

    @pytest.mark.nightly  # export/test_torchscript.py writes and opens such a file in every run
    def test_exported_files(self):
        super().test_exported_files()


class TestQuadrupoles(EncoderTests):
    encoder = "quadrupoles"

    @pytest.mark.nightly  # its graph is traced and scripted in every run (export/test_functional.py)
    def test_traced_export(self):
        super().test_traced_export()

    @pytest.mark.nightly
    def test_exported_files(self):
        super().test_exported_files()


class TestHydraGNN(EncoderTests):
    encoder = "hydragnn_painn"
    config: ClassVar = {"hydragnn": {"shared": [12], "heads": [12, 10]}}


class TestToy(EncoderTests):
    encoder = "toy"
    formats = ("torchscript",)

    @pytest.mark.nightly  # test_toy_end_to_end.py screens with an ONNX file of it in every run
    def test_exported_onnx(self):
        self.formats = ("onnx",)
        self.test_exported_files()


class TestPooledToy(EncoderTests):
    encoder = "pooled_toy"
    formats = ("onnx",)

    @pytest.mark.nightly  # and the toy that is not pooled is written to a file in every run
    def test_exported_files(self):
        super().test_exported_files()


class Turned(ToyEncoder):
    """Sees one component of the direction, so it is not invariant."""

    name = "turned"

    def geometry(self, vec, members, *, differentiable):
        edges = super().geometry(vec, members, differentiable=differentiable)
        return type(edges)(edges.vec, edges.basis + 0.1 * torch.sin(edges.vec[..., :1]), edges.cut)


class Jumping(ToyEncoder):
    """Has a cutoff that does not go to zero."""

    name = "jumping"

    def geometry(self, vec, members, *, differentiable):
        edges = super().geometry(vec, members, differentiable=differentiable)
        return type(edges)(edges.vec, edges.basis, edges.cut + 0.5)


class Detached(ToyEncoder):
    """Loses a part of the gradient by distance."""

    name = "detached"

    def geometry(self, vec, members, *, differentiable):
        edges = super().geometry(vec, members, differentiable=differentiable)
        return type(edges)(edges.vec, edges.basis, edges.cut.detach())


class Frozen(ToyEncoder):
    """Keeps a part of its output from learning."""

    name = "frozen"

    def forward(self, graph, geometry, condition, wanted):
        s, v = super().forward(graph, geometry, condition, wanted)
        return s + 0.5 * s.detach().square(), v


class Averaging(ToyEncoder):
    """Mixes members, and structures of a batch."""

    name = "averaging"

    def forward(self, graph, geometry, condition, wanted):
        s, v = super().forward(graph, geometry, condition, wanted)
        return (s + 0.1 * s.mean((0, 1), keepdim=True) if s.numel() else s), v


class Scattering(ToyEncoder):
    """Adds up edges by its own scatter, which an export cannot hold."""

    name = "scattering"

    def forward(self, graph, geometry, condition, wanted):
        s, v = super().forward(graph, geometry, condition, wanted)
        lost = torch.zeros_like(s).index_add(1, torch.zeros_like(graph.numbers), s)
        return s + 0 * lost, v


class Dividing(ToyEncoder):
    """Divides by the length of a sum over edges, which is zero without neighbours."""

    name = "dividing"

    def forward(self, graph, geometry, condition, wanted):
        s, v = super().forward(graph, geometry, condition, wanted)
        total = graph.sum_edges(geometry.cut)
        return s + total / total.norm(dim=2, keepdim=True), v


BROKEN = {kind.name: kind for kind in (Turned, Jumping, Detached, Frozen, Averaging, Scattering, Dividing)}


@pytest.mark.parametrize(
    ("encoder", "check", "said"),
    [
        ("turned", "check_symmetries", "energy after a rotation"),
        ("jumping", "check_smooth_cutoff", "jumps at the cutoff"),
        ("detached", "check_forces", "force on atom"),
        ("detached", "check_virial", "virial"),
        ("frozen", "check_double_backward", "gradient by"),
        ("averaging", "check_batch_independence", "structure"),
        ("averaging", "check_members", "member"),
        ("scattering", "check_traced_export", "index_add"),
        ("dividing", "check_lone_atoms", "not finite"),
        ("dividing", "check_awkward_cells", "not finite"),
    ],
)
def test_the_kit_finds_what_is_wrong(encoder, check, said):
    with pytest.raises(AssertionError, match=said):
        getattr(encoders, check)(build_untrained(encoder))


def test_the_kit_finds_charges_that_do_nothing():
    ensemble = build_untrained("toy", charge_spin=True)
    ensemble.encoder.forward = lambda graph, geometry, condition, wanted: ToyEncoder.forward(
        ensemble.encoder, graph, geometry, None, wanted
    )
    with pytest.raises(AssertionError, match="changes no energy"):
        encoders.check_charge_and_spin(ensemble)


def test_every_encoder_of_the_package_has_its_tests_here():
    tested = {kind.encoder for kind in EncoderTests.__subclasses__()}
    assert set(encoder_names()) - set(BROKEN) <= tested


def test_the_kit_imports_no_test_framework():
    import subprocess
    import sys

    program = "import sys, atomsieve.testing; sys.exit('pytest' in sys.modules or 'hypothesis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
    assert issubclass(Ensemble, torch.nn.Module) and math.isfinite(encoders.EXACT)
