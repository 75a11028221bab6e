"""Weights of HydraGNN's lead model in the layout of the fast path: merged, padded, and with biases in spare columns.

A weight `[out, in]` is applied to rows of length L >= F+3. Where its input ends, column F (or the next one) holds the
bias, because the row holds a 1 there; columns F+1 and F+2 hold the weights of charge and spin.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from atomsieve.errors import AtomSieveError

ELEMENTS = 119
LINE = 64
"""Bytes of a cache line; rows are whole lines."""


class Folded(NamedTuple):
    """Weights; F features, rows of length L, K = R + 1 values of an edge. `narrow*`: layer 0, float64."""

    features: int
    length: int
    radial: int
    biased: bool
    table: Tensor
    """[119,2] layer 0: payload along edges and scalar payload of each element."""
    narrow_filters: Tensor
    """[2,K] layer 0: filters of these two."""
    narrow: Tensor
    """[13] layer 0: the update (see `Narrow` in hydragnn_edges.cpp)."""
    spread: Tensor
    """[L] scalar of layer 0 to its features."""
    spread_bias: Tensor
    vector: Tensor
    """[L] vector of layer 0 to those that enter layer 1."""
    vector_bias: Tensor | None
    join: Tensor
    """[F,F+3] second node map of layer 0, then the join of charge and spin."""
    payload: Tensor
    """[F,F+1]"""
    payload_out: Tensor
    """[2L+F,F+1]"""
    filters: Tensor
    """[3,K,L] parts v, e, s."""
    vectors: Tensor
    """[L+F,F] or [L+F,F+1]: the two maps of vectors."""
    update: Tensor
    """[F,L+F+1] from lengths and scalars."""
    update_out: Tensor
    """[L+F,F+1]"""
    node: Tensor
    """[F,F+1]"""
    join_last: Tensor
    """[F,F+3]"""

    def inner(self, weight: Tensor) -> int:
        """Return how many columns of a weight are not spare."""
        return self.length + self.features if weight is self.update else self.features

    def to(self, device: torch.device) -> Folded:
        """Return the same on a device."""
        there: dict[str, Any] = {k: x.to(device) for k, x in self._asdict().items() if isinstance(x, Tensor)}
        return self._replace(**there)


class _State:
    """A state dict whose entries are taken one by one; entries left over or missing are errors."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.left = {k: v.detach().to("cpu", torch.float64) for k, v in state.items() if not is_head(k)}

    def take(self, name: str, *shape: int) -> Tensor:
        value = self.left.pop(name, None)
        if value is None:
            raise AtomSieveError(
                f"the state dict has no {name!r}; the fast path is for two PaiNN layers, width 1 first"
            )
        if tuple(value.shape) != shape:
            raise AtomSieveError(f"{name!r} has shape {tuple(value.shape)}, the fast path needs {shape}")
        return value

    def linear(self, name: str, out: int, inner: int) -> Tensor:
        """Return weight and bias side by side, `[out, inner+1]`."""
        return torch.cat([self.take(f"{name}.weight", out, inner), self.take(f"{name}.bias", out)[:, None]], 1)

    def optional(self, name: str, size: int) -> Tensor | None:
        return self.take(name, size) if name in self.left else None


def is_head(name: str) -> bool:
    """Return whether an entry belongs to the heads."""
    return name.startswith(("graph_shared.", "heads_NN."))


def fold(state: Mapping[str, Tensor], dtype: torch.dtype, rounded: bool) -> Folded:
    """Merge and pad the encoder's weights; products are formed in float64. `rounded`: matrices take BF16 values."""
    s = _State(state)
    name = "graph_concat_projector.weight"
    f, r = len(state[name]) if name in state else 0, 0
    filter_name = "graph_convs.0.module_0.filter_layer.weight"
    if filter_name in state:
        r = state[filter_name].shape[1]
    size = LINE // torch.finfo(dtype).bits * 8
    length = -(-(f + 3) // size) * size
    join = s.take(name, f, f + 2)
    join_bias = s.take("graph_concat_projector.bias", f)
    narrow = _layer_0(s, r)
    one = "graph_convs.0"
    first = s.linear(f"{one}.module_2.0", f, 1)
    w = s.take(f"{one}.module_3.weight", f, 1)[:, 0]
    beta = s.optional(f"{one}.module_3.bias", f)
    entering = _merge_node_and_join(s.linear(f"{one}.module_2.2", f, f), join, join_bias)
    one = "graph_convs.1"
    message, update = f"{one}.module_0", f"{one}.module_1"
    payload_out = s.linear(f"{message}.scalar_message_mlp.2", 3 * f, f)
    if beta is None:
        payload_out[:f] *= w[:, None]
    filters = s.linear(f"{message}.filter_layer", 3 * f, r)
    u, v = (s.take(f"{update}.update_{k}.weight", f, f) for k in "UV")
    biases = [s.optional(f"{update}.update_{k}.bias", f) for k in "UV"]
    biased = any(b is not None for b in biases)
    if biased:
        u, v = (
            torch.cat([m, (b if b is not None else torch.zeros(f, dtype=m.dtype))[:, None]], 1)
            for m, b in zip((u, v), biases, strict=True)
        )
    b1 = s.linear(f"{update}.update_mlp.0", f, 2 * f)
    b1 = torch.cat([b1[:, :f], b1.new_zeros(f, length - f), b1[:, f:]], 1)

    def cast(m: Tensor) -> Tensor:
        m = m.to(torch.bfloat16) if rounded else m
        return m.to(dtype).contiguous()

    def line(m: Tensor) -> Tensor:
        return torch.nn.functional.pad(m, (0, length - m.shape[-1])).to(dtype).contiguous()

    folded = Folded(
        f,
        length,
        r,
        biased,
        *narrow,
        spread=line(first[:, 0]),
        spread_bias=line(first[:, 1]),
        vector=line(w),
        vector_bias=None if beta is None else line(beta),
        join=cast(entering),
        payload=cast(s.linear(f"{message}.scalar_message_mlp.0", f, f)),
        payload_out=cast(_stack_at_lines(payload_out.split(f), length)),
        filters=line(torch.stack([part.t() for part in filters.split(f)])),
        vectors=cast(_stack_at_lines((u, v), length)),
        update=cast(b1),
        update_out=cast(_stack_at_lines(s.linear(f"{update}.update_mlp.2", 2 * f, f).split(f), length)),
        node=cast(s.linear(f"{one}.module_2.0", f, f)),
        join_last=cast(_merge_node_and_join(s.linear(f"{one}.module_2.2", f, f), join, join_bias)),
    )
    if s.left:
        raise AtomSieveError(f"the fast path does not know the entry {min(s.left)!r} of the state dict")
    return folded


def _merge_node_and_join(node: Tensor, join: Tensor, bias: Tensor) -> Tensor:
    """Return `[F,F+3]`: a node map followed by the join; its last columns are of 1, charge and spin."""
    f = len(node)
    merged = join[:, :f] @ node
    merged[:, f] += bias
    return torch.cat([merged, join[:, f:]], 1)


def _stack_at_lines(parts: tuple[Tensor, ...], length: int) -> Tensor:
    """Stack matrices so that their outputs start at multiples of `length`."""
    rows = [torch.nn.functional.pad(p, (0, 0, 0, length - len(p))) for p in parts[:-1]]
    return torch.cat([*rows, parts[-1]])


def _layer_0(s: _State, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the parts of layer 0: the table of elements, its filters and its update."""
    message, update = "graph_convs.0.module_0", "graph_convs.0.module_1"
    a1 = s.linear(f"{message}.scalar_message_mlp.0", 1, 1)
    a2 = s.linear(f"{message}.scalar_message_mlp.2", 3, 1)
    z = torch.arange(ELEMENTS, dtype=torch.float64)
    hidden = torch.nn.functional.silu(z * a1[0, 0] + a1[0, 1])
    table = hidden[:, None] * a2[1:, 0] + a2[1:, 1]
    filters = s.linear(f"{message}.filter_layer", 3, r)[1:]
    maps = []
    for k in "UV":
        maps.append(s.take(f"{update}.update_{k}.weight", 1, 1)[0])
        bias = s.optional(f"{update}.update_{k}.bias", 1)
        maps.append(torch.zeros(1, dtype=torch.float64) if bias is None else bias)
    inner = s.linear(f"{update}.update_mlp.0", 1, 2)[0]
    out = s.linear(f"{update}.update_mlp.2", 3, 1)
    return table.contiguous(), filters.contiguous(), torch.cat([*maps, inner, out[:, 0], out[:, 1]]).contiguous()
