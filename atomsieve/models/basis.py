"""Radial basis with a smooth cutoff, and the geometry of edges that all members of an ensemble share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from atomsieve.models.config import ModelConfig

_SHORTEST = 1e-3  # Angstrom; below, the basis is that of this distance (such structures are refused before)


def envelope(x: Tensor, p: int = 6) -> tuple[Tensor, Tensor]:
    """Return the polynomial cutoff of x = d / cutoff and its slope (Gasteiger et al., ICLR 2020, eq. 8).

    1 at x = 0; 0 with vanishing first and second derivatives at x = 1; 0 beyond.
    """
    a, b, c = -(p + 1) * (p + 2) / 2, p * (p + 2), -p * (p + 1) / 2
    low = x.pow(p - 1)
    value = 1 + low * x * (a + x * (b + x * c))
    slope = low * (a * p + x * (b * (p + 1) + x * (c * (p + 2))))
    inside = x < 1
    return torch.where(inside, value, 0), torch.where(inside, slope, 0)


def radial_basis(d: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Return the basis `[E,R]` at distances d `[E]` (Angstrom) and its derivative by d; R = n_basis + 1.

    The last column is the cutoff itself: with it, filter(basis) * cutoff = basis @ [weights; bias].

    Sources: Bessel functions, Gasteiger et al. 2020, eq. 7; Gaussians, Schuett et al. 2018 (SchNet).
    """
    d = d.clamp(min=_SHORTEST).unsqueeze(1)
    cut, cut_slope = envelope(d / config.cutoff)
    cut_slope = cut_slope / config.cutoff
    if config.basis == "bessel":
        n = torch.arange(1, config.n_basis + 1, device=d.device, dtype=d.dtype) * (math.pi / config.cutoff)
        norm = math.sqrt(2.0 / config.cutoff)
        sine, cosine = torch.sin(n * d), torch.cos(n * d)
        value = sine * (norm / d)
        slope = cosine * n * (norm / d) - value / d
    else:
        centres = torch.linspace(0.0, config.cutoff, config.n_basis, device=d.device, dtype=d.dtype)
        width = config.cutoff / max(config.n_basis - 1, 1)
        offset = (d - centres) / width
        value = torch.exp(-0.5 * offset * offset)
        slope = -value * offset / width
    return torch.cat([value * cut, cut], 1), torch.cat([slope * cut + value * cut_slope, cut_slope], 1)


@dataclass(frozen=True)
class Geometry:
    """Edges as the encoder sees them; members share the values but each has its own place for gradients.

    Attributes
    ----------
    basis : [K,E,R], radial basis; unit : [K,E,3], directions from receiver to sender. Leaves of autograd when
        forces are computed, and the only way by which positions enter an encoder.
    slope : [E,R], derivative of the basis by distance; distance : [E] Angstrom.
    stretch : [K,E], a leaf too, on which nothing depends: an encoder that has the gradient by the distance, as far as
        it acts through the basis, gives it here in the place of one by the basis.
    """

    basis: Tensor
    unit: Tensor
    slope: Tensor
    distance: Tensor
    stretch: Tensor

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """Tensors by which energies are differentiated, in the order of the arguments of `pull_back`."""
        return self.basis, self.unit, self.stretch

    @staticmethod
    def build(vec: Tensor, config: ModelConfig, members: int, *, differentiable: bool) -> Geometry:
        """Compute the shared geometry of edge vectors `vec [E,3]` (Angstrom) for K = `members`."""
        distance = torch.linalg.vector_norm(vec, dim=1)
        unit = vec / distance.clamp(min=_SHORTEST).unsqueeze(1)
        basis, slope = radial_basis(distance, config)
        many_basis = basis.detach().expand(members, *basis.shape)
        many_unit = unit.detach().expand(members, *unit.shape)
        stretch = distance.detach().new_zeros(1).expand(members, len(distance))
        if differentiable:
            many_basis.requires_grad_()
            many_unit.requires_grad_()
            stretch.requires_grad_()
        return Geometry(many_basis, many_unit, slope, distance, stretch)

    def pull_back(
        self, grad_basis: Tensor | None, grad_unit: Tensor | None, grad_stretch: Tensor | None = None
    ) -> Tensor:
        """Turn gradients by basis `[K,E,R]`, unit `[K,E,3]` and distance `[K,E]` into those by edge vectors, `[K,E,3]`.

        The one by unit is None for an encoder that does not use directions; of basis and distance one may be None.
        """
        given = (grad_basis, grad_unit, grad_stretch)
        if torch.is_grad_enabled() and any(g is not None and g.requires_grad for g in given):
            found: Tensor = _PullBack.apply(*given, self)
            return found
        return self._pull_back(*given)

    def _pull_back(self, grad_basis: Tensor | None, grad_unit: Tensor | None, grad_stretch: Tensor | None) -> Tensor:
        unit = self.unit.detach()
        along = grad_stretch
        if grad_basis is not None:
            through = torch.einsum("ker,er->ke", grad_basis, self.slope)
            along = through if along is None else along + through
        assert along is not None
        if grad_unit is None:
            return unit * along.unsqueeze(2)
        radial = (grad_unit * unit).sum(2)
        length = self.distance.clamp(min=_SHORTEST).unsqueeze(0)
        return unit * (along - radial / length).unsqueeze(2) + grad_unit / length.unsqueeze(2)


class _PullBack(torch.autograd.Function):
    """`Geometry.pull_back` for a loss on forces: linear in the gradients, so that its backward is its transpose."""

    @staticmethod
    def forward(
        ctx: Any, grad_basis: Tensor | None, grad_unit: Tensor | None, grad_stretch: Tensor | None, geometry: Geometry
    ) -> Tensor:
        ctx.geometry = geometry
        return geometry._pull_back(grad_basis, grad_unit, grad_stretch)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_vec: Tensor) -> tuple[Tensor | None, ...]:
        geometry, (basis, direction, stretch, _) = ctx.geometry, ctx.needs_input_grad
        unit = geometry.unit.detach()
        along = torch.linalg.vecdot(by_vec, unit)
        by_basis = along.unsqueeze(2) * geometry.slope if basis else None
        length = geometry.distance.clamp(min=_SHORTEST).view(1, -1, 1)
        by_unit = (by_vec - unit * along.unsqueeze(2)) / length if direction else None
        return by_basis, by_unit, along if stretch else None, None
