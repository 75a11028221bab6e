"""Matrices of channels as scalar, vector and symmetric traceless tensor, and the second-order function of a direction.

The five components t_m of a symmetric traceless matrix S are those in the orthonormal basis B_m (S = sum_m t_m B_m,
tr(B_m B_n) = 1 if m = n, else 0):

    B_0 = (xy + yx) / sqrt 2,  B_1 = (yz + zy) / sqrt 2,  B_2 = (2 zz - xx - yy) / sqrt 6,  B_3 = (xz + zx) / sqrt 2,
    B_4 = (xx - yy) / sqrt 2

so that sums of squares of components equal those of the matrix, and rotations act on t by an orthogonal matrix. With
`Y_2(u)_m = u . B_m u`, the tensor of a direction is `u u - |u|^2 / 3`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROOT_2 = math.sqrt(2.0)
ROOT_6 = math.sqrt(6.0)


def second_order(unit: Tensor) -> Tensor:
    """Return `Y_2` of directions `[...,3]`: `[...,5]`."""
    x, y, z = unit.unbind(-1)
    middle = (2 * z * z - x * x - y * y) / ROOT_6
    return torch.stack([ROOT_2 * x * y, ROOT_2 * y * z, middle, ROOT_2 * x * z, (x * x - y * y) / ROOT_2], -1)


def pull_second_order(unit: Tensor, grad: Tensor) -> Tensor:
    """Turn gradients by `Y_2` `[...,5]` into those by directions `[...,3]`: `2 S u`, S the matrix of the gradient."""
    x, y, z = unit.unbind(-1)
    g = grad.unbind(-1)
    xx, yy = ROOT_2 * g[4] - (2 / ROOT_6) * g[2], -ROOT_2 * g[4] - (2 / ROOT_6) * g[2]
    along_x = xx * x + ROOT_2 * (g[0] * y + g[3] * z)
    along_y = yy * y + ROOT_2 * (g[0] * x + g[1] * z)
    along_z = (4 / ROOT_6) * g[2] * z + ROOT_2 * (g[1] * y + g[3] * x)
    return torch.stack([along_x, along_y, along_z], -1)


def make_matrices(scalar: Tensor | None, vector: Tensor | None, tensor: Tensor | None) -> Tensor:
    """Return `s 1 + A(v) + S(t)`, `[...,3,3,F]`, of `scalar [...,F]`, `vector [...,3,F]`, `tensor [...,5,F]`.

    None stands for zero; one of them must be given. `A(v) w = v x w` is the antisymmetric part.
    """
    parts: list[list[Tensor]] = [[] for _ in range(9)]
    if scalar is not None:
        for k in (0, 4, 8):
            parts[k].append(scalar)
    if vector is not None:
        x, y, z = vector.unbind(-2)
        for k, part in ((1, -z), (2, y), (3, z), (5, -x), (6, -y), (7, x)):
            parts[k].append(part)
    if tensor is not None:
        t = tensor.unbind(-2)
        xy, yz, xz = (t[k] / ROOT_2 for k in (0, 1, 3))
        middle, difference = t[2] / ROOT_6, t[4] / ROOT_2
        diagonal = {0: difference - middle, 4: -difference - middle, 8: 2 * middle}
        for k, part in {**diagonal, 1: xy, 3: xy, 2: xz, 6: xz, 5: yz, 7: yz}.items():
            parts[k].append(part)
    given = next(t for t in (*parts[0], *parts[1]))
    entries = [sum(found[1:], found[0]) if found else torch.zeros_like(given) for found in parts]
    return torch.stack(entries, -2).unflatten(-2, (3, 3))


def split_matrices(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split `[...,3,3,F]` as `make_matrices` composes them: scalar `[...,F]`, vector `[...,3,F]`, tensor `[...,5,F]`.

    With these, the sum of squares of the matrix is `3 s^2 + 2 |v|^2 + |t|^2`.
    """
    xx, xy, xz, yx, yy, yz, zx, zy, zz = matrices.flatten(-3, -2).unbind(-2)
    vector = torch.stack([zy - yz, xz - zx, yx - xy], -2) / 2
    middle = (2 * zz - xx - yy) / ROOT_6
    tensor = torch.stack([(xy + yx) / ROOT_2, (yz + zy) / ROOT_2, middle, (xz + zx) / ROOT_2, (xx - yy) / ROOT_2], -2)
    return (xx + yy + zz) / 3, vector, tensor
