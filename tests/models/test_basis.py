"""Radial basis and the way from gradients of the basis back to edge vectors."""

import pytest
import torch

from atomsieve.models.basis import Geometry, envelope, radial_basis
from atomsieve.models.config import ModelConfig


@pytest.mark.parametrize("basis", ["bessel", "gaussian"])
def test_slope_is_the_derivative(basis):
    config = ModelConfig(basis=basis, n_basis=9, cutoff=4.5)
    d = torch.linspace(0.2, 4.6, 89, dtype=torch.float64, requires_grad=True)
    value, slope = radial_basis(d, config)
    for column in range(value.shape[1]):
        (exact,) = torch.autograd.grad(value[:, column].sum(), d, retain_graph=True)
        assert torch.allclose(slope[:, column].detach(), exact, atol=1e-11)


@pytest.mark.parametrize("basis", ["bessel", "gaussian"])
def test_everything_vanishes_smoothly_at_the_cutoff(basis):
    config = ModelConfig(basis=basis, cutoff=5.0)
    value, slope = radial_basis(torch.tensor([5.0 - 1e-4, 5.0, 7.0], dtype=torch.float64), config)
    assert value.abs()[0].max() < 1e-9
    assert slope.abs()[0].max() < 1e-6
    assert not value[1:].any()
    assert not slope[1:].any()


def test_envelope_starts_at_one():
    value, slope = envelope(torch.tensor([0.0], dtype=torch.float64))
    assert float(value) == 1.0
    assert float(slope) == 0.0


def test_pull_back_equals_autograd_through_the_whole_geometry():
    config = ModelConfig(n_basis=6, cutoff=5.0)
    vec = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 1.5
    vec.requires_grad_()

    def function(basis, unit):
        return (basis.pow(3).sum(-1) * (1 + unit[..., 0] * unit[..., 2] ** 2)).sum()

    distance = vec.norm(dim=1)
    (exact,) = torch.autograd.grad(function(radial_basis(distance, config)[0], vec / distance[:, None]), vec)
    geometry = Geometry.build(vec.detach(), config, 2, differentiable=True)
    grads = torch.autograd.grad(function(geometry.basis, geometry.unit), (geometry.basis, geometry.unit))
    for own in geometry.pull_back(*grads):
        assert torch.allclose(own, exact, atol=1e-12)
    by_distance = (grads[0] * geometry.slope).sum(2)  # an encoder may give this in the place of a gradient by the basis
    for own in geometry.pull_back(None, grads[1], by_distance):
        assert torch.allclose(own, exact, atol=1e-12)


@pytest.mark.parametrize("given", [(True, True, False), (False, True, True), (True, False, True), (True, False, False)])
def test_pull_back_has_its_transpose_as_derivative(given):
    rng = torch.Generator().manual_seed(2)
    config = ModelConfig(n_basis=3, cutoff=5.0)
    vec = torch.randn(4, 3, dtype=torch.float64, generator=rng)
    geometry = Geometry.build(vec, config, 2, differentiable=True)
    shapes = [(2, 4, 4), (2, 4, 3), (2, 4)]
    grads = [torch.randn(s, generator=rng, dtype=torch.float64, requires_grad=True) for s in shapes]
    chosen = [g for g, yes in zip(grads, given, strict=True) if yes]

    def pull(*own):
        rest = iter(own)
        return geometry.pull_back(*(next(rest) if yes else None for yes in given))

    assert pull(*chosen).grad_fn.name() == "_PullBackBackward"
    with torch.no_grad():
        plain = pull(*chosen)
    assert torch.equal(pull(*chosen), plain)
    assert torch.autograd.gradcheck(pull, chosen)
