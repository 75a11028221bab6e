"""An eager re-creation of HydraGNN's lead model and of its fused screening path, to measure against.

Mathematics, names and shapes are HydraGNN's: two PaiNN layers (the first of width 1, the second of 337), four radial
functions, cutoff 5 Angstrom, charge and spin joined to every layer's scalars, a sum over atoms, sixteen heads 50/50 and
776/776, weights of heads from a network on the composition. As in their fused path the encoder runs once, the heads as
one batched product, and one backward pass of the weighted energy gives the forces. Written for benchmarks and as an
oracle of tests: every step is one torch operation on edge-wide arrays, and autograd differentiates it.

Edges run from `sender` to `receiver`, `vec = pos[sender] + shift - pos[receiver]`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ELEMENTS = 118


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; the defaults are those of the lead model.

    `vector_bias` gives the linear maps of vectors a bias, as older releases have; it breaks rotational symmetry.
    """

    hidden: int = 337
    layers: int = 2
    radial: int = 4
    cutoff: float = 5.0
    heads: int = 16
    shared: tuple[int, ...] = (50, 50)
    head: tuple[int, ...] = (776, 776)
    vector_bias: bool = False


class Message(nn.Module):
    """Scalars and vectors that each atom receives; `width` features."""

    def __init__(self, width: int, shape: Shape) -> None:
        super().__init__()
        self.width, self.shape = width, shape
        self.scalar_message_mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 3 * width))
        self.filter_layer = nn.Linear(shape.radial, 3 * width)

    def forward(self, s: Tensor, v: Tensor, vec: Tensor, sender: Tensor, receiver: Tensor) -> tuple[Tensor, Tensor]:
        """Return scalars `[N,F]` and vectors `[N,3,F]` after the message."""
        cutoff = self.shape.cutoff
        distance = torch.linalg.norm(vec, dim=-1, keepdim=True)
        direction = vec / (distance + 1e-9) / distance  # divided by the length twice: theirs
        n = torch.arange(1, self.shape.radial + 1, device=vec.device, dtype=vec.dtype)
        radial = torch.sin(n * distance * (math.pi / cutoff)) / distance
        within = 0.5 * (torch.cos(math.pi * distance / cutoff) + 1) * (distance < cutoff)
        filters = self.filter_layer(radial) * within
        sent = self.scalar_message_mlp(s)[sender]
        gate_v, gate_edge, message = (filters * sent).split(self.width, dim=1)
        vectors = v[sender] * gate_v.unsqueeze(1) + direction.unsqueeze(2) * gate_edge.unsqueeze(1)
        return s + torch.zeros_like(s).index_add(0, receiver, message), v + torch.zeros_like(v).index_add(
            0, receiver, vectors
        )


class Update(nn.Module):
    """Scalars and vectors mixed within each atom; the last layer leaves the vectors as they are."""

    def __init__(self, width: int, last: bool, shape: Shape) -> None:
        super().__init__()
        self.width, self.last = width, last
        self.update_U = nn.Linear(width, width, bias=shape.vector_bias)
        self.update_V = nn.Linear(width, width, bias=shape.vector_bias)
        self.update_mlp = nn.Sequential(
            nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, (2 if last else 3) * width)
        )

    def forward(self, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return updated scalars and vectors."""
        u_v, v_v = self.update_U(v), self.update_V(v)
        length = torch.linalg.norm(v_v, dim=1)
        gates = self.update_mlp(torch.cat([length, s], dim=-1)).split(self.width, dim=1)
        inner = (u_v * v_v).sum(1)
        if self.last:
            return s + gates[0] * inner + gates[1], v
        return s + gates[1] * inner + gates[2], v + gates[0].unsqueeze(1) * u_v


class Layer(nn.Module):
    """One layer; its parts are numbered as in HydraGNN's checkpoints."""

    def __init__(self, width: int, last: bool, shape: Shape) -> None:
        super().__init__()
        self.module_0 = Message(width, shape)
        self.module_1 = Update(width, last, shape)
        self.module_2 = nn.Sequential(nn.Linear(width, shape.hidden), nn.Tanh(), nn.Linear(shape.hidden, shape.hidden))
        if not last:
            self.module_3 = nn.Linear(width, shape.hidden, bias=shape.vector_bias)


def _mlp(sizes: tuple[int, ...], last: bool) -> nn.Sequential:
    """Linear maps with ReLU between them, and after the last one unless it is the end of a network."""
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        parts += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*(parts[:-1] if last else parts))


class EagerHydraGNN(nn.Module):
    """The model; its state dict has the names of HydraGNN's checkpoints without their prefix."""

    def __init__(self, shape: Shape = Shape()) -> None:
        super().__init__()
        self.shape = shape
        self.graph_convs = nn.ModuleList(
            Layer(1 if k == 0 else shape.hidden, k == shape.layers - 1, shape) for k in range(shape.layers)
        )
        self.graph_concat_projector = nn.Linear(shape.hidden + 2, shape.hidden)
        names = [f"branch-{b}" for b in range(shape.heads)]
        self.graph_shared = nn.ModuleDict({n: _mlp((shape.hidden, *shape.shared), False) for n in names})
        self.heads_NN = nn.ModuleList(
            [nn.ModuleDict({n: _mlp((shape.shared[-1], *shape.head, 1), True) for n in names})]
        )

    def encode(
        self, numbers: Tensor, vec: Tensor, sender: Tensor, receiver: Tensor, structure: Tensor, attributes: Tensor
    ) -> Tensor:
        """Return the sum of features `[S,H]` of each structure; `attributes [S,2]` are charge and spin."""
        s = numbers.to(vec.dtype).unsqueeze(1)
        v = vec.new_zeros(len(s), 3, 1)
        joined = attributes[structure]
        for layer in self.graph_convs:
            s, v = layer.module_0(s, v, vec, sender, receiver)  # type: ignore[union-attr, operator]
            s, v = layer.module_1(s, v)  # type: ignore[union-attr, operator]
            s = layer.module_2(s)  # type: ignore[union-attr, operator]
            if hasattr(layer, "module_3"):
                v = layer.module_3(v)  # type: ignore[union-attr, operator]
            s = torch.relu(self.graph_concat_projector(torch.cat([s, joined], dim=1)))
        return s.new_zeros(len(attributes), s.shape[1]).index_add(0, structure, s)

    def heads_batched(self, features: Tensor) -> Tensor:
        """Return energies `[S,B]` of all heads by batched products, as their fused path computes them."""
        x = features.unsqueeze(0).expand(self.shape.heads, -1, -1)
        for weight, bias, active in self.stacked:
            x = torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
            x = torch.relu(x) if active else x
        return x.squeeze(2).t()

    def stack_heads(self) -> EagerHydraGNN:
        """Stack the weights of the heads for `heads_batched`, once; return the model."""
        self.stacked: list[tuple[Tensor, Tensor, bool]] = []
        for group in (self.graph_shared, self.heads_NN[0]):
            branches = [list(b) for b in group.values()]  # type: ignore[operator, union-attr]
            for k, part in enumerate(branches[0]):
                if isinstance(part, nn.Linear):
                    weight = torch.stack([b[k].weight.detach() for b in branches])
                    bias = torch.stack([b[k].bias.detach() for b in branches])
                    self.stacked.append((weight, bias, weight.shape[1] != 1))
        return self

    def fused(
        self,
        numbers: Tensor,
        vec: Tensor,
        sender: Tensor,
        receiver: Tensor,
        structure: Tensor,
        attributes: Tensor,
        mix: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return energies of heads `[S,B]`, weighted energies `[S]` and the gradient by edge vectors `[E,3]`."""
        vec = vec.detach().requires_grad_()
        each = self.heads_batched(self.encode(numbers, vec, sender, receiver, structure, attributes))
        energy = (each * mix).sum(1)
        (grad,) = torch.autograd.grad(energy.sum(), vec)
        return each.detach(), energy.detach(), grad


class BranchWeights(nn.Module):
    """Weights of heads from counts of elements: `[S,118]` to `[S,B]`, each row of sum 1."""

    def __init__(self, heads: int = 16) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(ELEMENTS, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, heads)
        )

    def forward(self, counts: Tensor) -> Tensor:
        """Return softmax weights."""
        return torch.softmax(self.net(counts), dim=1)


def build(shape: Shape = Shape(), seed: int = 0, precision: torch.dtype = torch.float64) -> EagerHydraGNN:
    """Return a model of random weights, ready for `fused`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = EagerHydraGNN(shape).to(precision).eval()
    return model.requires_grad_(False).stack_heads()
