"""All layers of PaiNN for training on a CPU: forward, backward, and the backward of both, with compiled steps.

A loss on forces needs the gradient, by the weights, of gradients of the energy by the geometry. With h the direction in
which such a loss moves the geometry, that is the gradient of the energy's derivative along h, and so is done in
four passes, of which each layer keeps what later ones need:

1. forward: activations;
2. backward from the energies to the geometry: adjoints, with prefix e;
3. forward along h, as derivative of 2.: tangents, with prefix h;
4. one backward pass for the weights, prefix b: of what the loss says of energies, and of the derivative along h.

For z = q W these are W's gradient q^T bz + hq^T ez, and bq = bz W^T. The other steps are compiled and stand with their
formulas in `native/painn_train.cpp` (atoms) and `native/painn_pairs.cpp` (edges). The equations are those of Schuett,
Unke and Gastegger (ICML 2021).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from atomsieve.graphs.graph import Graph
from atomsieve.models.basis import Geometry
from atomsieve.models.encoder import Wanted
from atomsieve.models.layers import StackedLinear
from atomsieve.models.messages import message as messages
from atomsieve.models.painn.layer_cpu import LayerWeights
from atomsieve.models.painn.tiles import Tiles, call
from atomsieve.native import kernels

_PASSES = 256  # backward passes to the geometry that one evaluation may have, as decoders of a shallow ensemble need


def training_serves(s: Tensor, graph: Graph, layers: Iterable[LayerWeights], wanted: Wanted) -> bool:
    """Return whether `train_on_cpu` can be used.

    It takes compiled kernels, a complete list, gradients of either the geometry or the weights in each backward pass,
    products of full precision, and enough members and structures for all threads.
    """
    learning = wanted.twice or (wanted.parameters and torch.is_grad_enabled())
    if not learning or wanted.geometry == wanted.parameters or not messages.native_serves(s, graph):
        return False
    rounded = any(m.low_precision for layer in layers for m in (layer.mix, layer.payload.first))
    enough = torch.get_num_threads() <= s.shape[0] * graph.n_structures
    return hasattr(kernels(), "painn_pairs_forward_f32") and enough and not rounded


def train_on_cpu(
    layers: Iterable[LayerWeights], s: Tensor, graph: Graph, geometry: Geometry, wanted: Wanted, *, vectors: bool
) -> tuple[Tensor, Tensor | None]:
    """Apply all layers to scalars [K,N,F]; return scalars, and vectors [K,N,3,F] if they are wanted.

    Of the geometry, unit and stretch get gradients; by those, the gradient can be differentiated once more by s and the
    weights. A backward pass gives either, as `wanted` says when it runs.
    """
    weights = [_Weights.of(layer) for layer in layers]
    record = _Record(Tiles(graph, geometry, s.shape[0], s.shape[2]), wanted, vectors, len(weights))
    found = _Forward.apply(record, s, geometry.unit, geometry.stretch, *(t for w in weights for t in w))
    return found[0], found[1] if vectors else None


class _Weights(NamedTuple):
    """Of one layer: two linear maps with biases (payload), filters, a map of vectors, two with biases (update)."""

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    filters: Tensor
    mix: Tensor
    w3: Tensor
    b3: Tensor
    w4: Tensor
    b4: Tensor

    @staticmethod
    def of(layer: LayerWeights) -> _Weights:
        maps = [layer.payload.first, layer.payload.second, layer.update.first, layer.update.second]
        one, two, three, four = ((m.weight, _bias(m)) for m in maps)
        return _Weights(*one, *two, layer.filters, layer.mix.weight, *three, *four)


def _bias(linear: StackedLinear) -> Tensor:
    assert linear.bias is not None
    return linear.bias


@dataclass
class _Values:
    """What one layer computes in one pass: activations, adjoints, or tangents.

    s, v : scalars and vectors that enter (v None: none yet); s2, v2 : that leave.
    hidden1, slope1, curve1 : of the first map's nonlinearity (as adjoint or tangent: `hidden1` after, `slope1` before).
    p : payload; x : as sent; joined, v1 : after the message; lr : left and right; gates : a_ss, a_sv, a_vv.
    """

    s: Any = None
    v: Any = None
    slope1: Any = None
    hidden1: Any = None
    curve1: Any = None
    p: Any = None
    x: Any = None
    s1: Any = None
    joined: Any = None
    v1: Any = None
    lr: Any = None
    slope2: Any = None
    hidden2: Any = None
    curve2: Any = None
    gates: Any = None
    s2: Any = None
    v2: Any = None


class _Record:
    """One evaluation: what its passes keep for each other. Holds no tensor that records gradients."""

    def __init__(self, tiles: Tiles, wanted: Wanted, vectors: bool, layers: int) -> None:
        self.tiles, self.wanted, self.vectors, self.layers = tiles, wanted, vectors, layers
        self.weights: list[_Weights] = []
        self.values: list[_Values] = []
        self.adjoints: list[list[_Values]] = []  # of each backward pass to the geometry
        self.tangents: list[tuple[list[_Values], Tensor, Tensor] | None] = []


class _Forward(torch.autograd.Function):
    """Its last output is a token whose gradient says which backward passes to the geometry were differentiated.

    It makes autograd run those first, and their part of the gradients is taken along here, in one pass.
    """

    @staticmethod
    def forward(ctx: Any, record: _Record, s: Tensor, unit: Tensor, stretch: Tensor, *weights: Tensor) -> Any:
        each = len(_Weights._fields)
        detached = [w.detach().contiguous() for w in weights]
        record.weights = [_Weights(*detached[k : k + each]) for k in range(0, len(detached), each)]
        scalars, v = s.detach().contiguous(), None
        for place, w in enumerate(record.weights):
            values = _forward(record, w, scalars, v, last=place == record.layers - 1)
            record.values.append(values)
            scalars, v = values.s2, values.v2
        ctx.record = record
        ctx.set_materialize_grads(False)
        token = s.new_zeros(_PASSES)
        ctx.save_for_backward(token)
        # Tensors of their own: an output leads to this node, and so must not lie in the record that the node holds.
        return (scalars.detach(), v.detach(), token) if record.vectors and v is not None else (scalars.detach(), token)

    @staticmethod
    def backward(ctx: Any, by_s: Tensor | None, *rest: Tensor | None) -> Any:
        record: _Record = ctx.record
        (token,) = ctx.saved_tensors
        by_v = rest[0] if record.vectors else None
        if record.wanted.geometry:
            grads = _Back.apply(record, token, by_s, by_v)
            return (None, None, *grads, *(None for _ in range(len(_Weights._fields) * record.layers)))
        with torch.no_grad():
            passes = [] if rest[-1] is None else torch.nonzero(rest[-1]).flatten().tolist()
            by_first, by_weights = _reverse(record, by_s, by_v, passes)
        return (None, by_first, None, None, *by_weights)


class _Back(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, record: _Record, token: Tensor, by_s: Tensor | None, by_v: Tensor | None) -> Any:
        ctx.record, ctx.place = record, len(record.adjoints)
        if ctx.place == _PASSES:
            raise RuntimeError(f"one evaluation was differentiated by its geometry more than {_PASSES} times")
        ctx.set_materialize_grads(False)
        tiles, first = record.tiles, record.values[0].s
        by_unit = first.new_zeros(first.shape[0], tiles.n_edges, 3)
        by_stretch = first.new_zeros(first.shape[0], tiles.n_edges)
        adjoints: list[_Values] = []
        e_s = torch.zeros_like(first) if by_s is None else by_s.detach().contiguous()
        e_v = None if by_v is None else by_v.detach().contiguous()
        for w, a in zip(reversed(record.weights), reversed(record.values), strict=True):
            e = _back(record, w, a, e_s, e_v, by_unit, by_stretch)
            adjoints.append(e)
            e_s, e_v = e.s, e.v
        record.adjoints.append(adjoints[::-1])
        record.tangents.append(None)
        return by_unit, by_stretch

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, h_unit: Tensor | None, h_stretch: Tensor | None) -> Any:
        record: _Record = ctx.record
        if record.wanted.geometry:
            raise RuntimeError(
                "the compiled layers give second derivatives of geometry with respect to parameters only: set "
                "wanted.geometry = False and wanted.parameters = True for the second backward pass"
            )
        first = record.values[0].s
        members, edges = first.shape[0], record.tiles.n_edges
        h_unit = first.new_zeros(members, edges, 3) if h_unit is None else h_unit.contiguous()
        h_stretch = first.new_zeros(members, edges) if h_stretch is None else h_stretch.contiguous()
        tangents: list[_Values] = []
        h_s, h_v = None, None
        for w, a in zip(record.weights, record.values, strict=True):
            tangents.append(_tangent(record, w, a, h_s, h_v, h_unit, h_stretch))
            h_s, h_v = tangents[-1].s2, tangents[-1].v2
        record.tangents[ctx.place] = (tangents, h_unit, h_stretch)
        by_token = first.new_zeros(_PASSES)
        by_token[ctx.place] = 1
        return None, by_token, h_s, h_v


def _forward(record: _Record, w: _Weights, s: Tensor, v: Tensor | None, *, last: bool) -> _Values:
    members, atoms, width = s.shape
    rows = members * atoms, width
    found = _Values(s=s, v=v, joined=s.new_empty(members, atoms, 2 * width), v1=s.new_empty(members, atoms, 3, width))
    found.slope1, found.hidden1, found.curve1 = _activate(torch.baddbmm(w.b1.unsqueeze(1), s, w.w1))
    if v is None:
        found.x = found.p = _map(found.hidden1, w.w2, w.b2, 2 * width)
        call("start", s.dtype, rows, s, found.joined, found.v1)
    else:
        found.p, found.x = _map(found.hidden1, w.w2, w.b2, 3 * width), s.new_empty(members, atoms, 5, width)
        call("send", s.dtype, rows, found.p, s, v, found.x, found.joined, found.v1)
    record.tiles("forward", v is None, found.x, w.filters, found.joined, found.v1)  # eqs. 7, 8
    found.lr = torch.bmm(found.v1.view(members, 3 * atoms, width), w.mix)  # U v, V v
    call("norm", s.dtype, rows, found.lr, found.joined)
    found.slope2, found.hidden2, found.curve2 = _activate(torch.baddbmm(w.b3.unsqueeze(1), found.joined, w.w3))
    wide = 2 * width if last and not record.vectors else 3 * width
    found.gates = _map(found.hidden2, w.w4, w.b4, wide)
    found.s2, found.v2 = torch.empty_like(s), torch.empty_like(found.v1) if wide == 3 * width else None
    call(
        "gate", s.dtype, (*rows, wide), found.gates, found.lr, found.joined, found.v1, found.s2, found.v2
    )  # eqs. 9, 10
    return found


def _back(
    record: _Record, w: _Weights, a: _Values, e_s2: Tensor, e_v2: Tensor | None, by_unit: Tensor, by_stretch: Tensor
) -> _Values:
    """Return the adjoints of a layer; gradients by unit and stretch are added to those given."""
    members, atoms, width = a.s.shape
    rows, wide = (members * atoms, width), a.gates.shape[2]
    e = _Values(s2=e_s2, v2=e_v2, gates=torch.empty_like(a.gates), lr=torch.empty_like(a.lr), s1=torch.empty_like(a.s))
    nothing = (None, None, None, None)
    call("gate_reverse", a.s.dtype, (*rows, wide), a.gates, a.lr, e_s2, e_v2, *nothing, e.gates, e.lr)
    e.hidden2 = torch.bmm(e.gates, w.w4[:, :, :wide].transpose(1, 2))
    e.slope2 = _scaled(a.slope2, e.hidden2)
    e.joined = torch.bmm(e.slope2, w.w3.transpose(1, 2))
    call("norm_reverse", a.s.dtype, rows, a.joined, a.lr, e_s2, e.joined, None, None, None, e.lr, e.s1)
    e.v1 = _map_back(e.lr, w.mix, e_v2)
    first = a.v is None
    e.x = None if first else torch.zeros_like(a.x)
    record.tiles("pull", first, a.x, w.filters, e.s1, e.v1, e.x, by_stretch, by_unit)
    if not first:
        e.p, e.v = torch.empty_like(a.p), torch.empty_like(a.v)
        call("send_reverse", a.s.dtype, rows, a.p, a.v, e.x, e.v1, None, None, None, e.p, e.v)
        e.hidden1 = torch.bmm(e.p, w.w2.transpose(1, 2))
        e.slope1 = _scaled(a.slope1, e.hidden1)
        e.s = torch.baddbmm(e.s1, e.slope1, w.w1.transpose(1, 2))
    return e


def _tangent(
    record: _Record, w: _Weights, a: _Values, h_s: Tensor | None, h_v: Tensor | None, h_unit: Tensor, h_stretch: Tensor
) -> _Values:
    """Return the tangents of a layer; of those that enter None: zero, as in the first."""
    members, atoms, width = a.s.shape
    rows, wide, first = (members * atoms, width), a.gates.shape[2], a.v is None
    h = _Values(s=h_s, v=h_v, joined=torch.empty_like(a.joined), v1=torch.empty_like(a.v1))
    if first:
        call("start", a.s.dtype, rows, None, h.joined, h.v1)
    else:
        assert h_s is not None
        h.slope1 = torch.bmm(h_s, w.w1)
        h.hidden1 = _scaled(a.slope1, h.slope1)
        h.p, h.x = torch.bmm(h.hidden1, w.w2), torch.empty_like(a.x)
        call("send_tangent", a.s.dtype, rows, a.p, a.v, h.p, h_s, h_v, h.x, h.joined, h.v1)
    record.tiles("tangent", first, a.x, w.filters, h.x, h_stretch, h_unit, h.joined, h.v1)
    h.lr = torch.bmm(h.v1.view(members, 3 * atoms, width), w.mix)
    call("norm_tangent", a.s.dtype, rows, a.lr, a.joined, h.lr, h.joined)
    h.slope2 = torch.bmm(h.joined, w.w3)
    h.hidden2 = _scaled(a.slope2, h.slope2)
    h.gates = torch.bmm(h.hidden2, w.w4[:, :, :wide])
    h.s2, h.v2 = torch.empty_like(a.s), None if a.v2 is None else torch.empty_like(a.v2)
    call("gate_tangent", a.s.dtype, (*rows, wide), a.gates, a.lr, h.gates, h.lr, h.joined, h.v1, h.s2, h.v2)
    return h


def _reverse(
    record: _Record, by_s: Tensor | None, by_v: Tensor | None, passes: Sequence[int]
) -> tuple[Tensor, list[Tensor]]:
    """Return gradients by the scalars that entered, and by all weights.

    passes : the backward passes to the geometry whose differentiation is taken along. The pass is linear in what starts
    it, so of several each is a pass of its own, and the first takes the gradients by the outputs.
    """
    by_first: Tensor | None = None
    sums: list[Tensor] = []
    for place in passes or (None,):
        b_s = torch.zeros_like(record.values[0].s) if by_s is None else by_s.contiguous()
        b_v = None if by_v is None else by_v.contiguous()
        kept = None if place is None else record.tangents[place]
        assert place is None or kept is not None
        found: list[Tensor] = []
        for layer in reversed(range(record.layers)):
            e = h = _Values()
            h_unit = h_stretch = None
            if place is not None and kept is not None:
                e, h, h_unit, h_stretch = record.adjoints[place][layer], kept[0][layer], kept[1], kept[2]
            b_s, b_v, grads = _reverse_layer(record, layer, b_s, b_v, e, h, h_unit, h_stretch)
            found = [*grads, *found]
        by_first = b_s if by_first is None else by_first + b_s
        sums = [one + two for one, two in zip(sums, found, strict=True)] if sums else found
        by_s = by_v = None
    assert by_first is not None
    return by_first, sums


def _reverse_layer(
    record: _Record,
    layer: int,
    b_s2: Tensor,
    b_v2: Tensor | None,
    e: _Values,
    h: _Values,
    h_unit: Tensor | None,
    h_stretch: Tensor | None,
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """Return gradients by what enters a layer, and by its weights in their order."""
    w, a = record.weights[layer], record.values[layer]
    members, atoms, width = a.s.shape
    rows, wide, first, dtype = (members * atoms, width), a.gates.shape[2], a.v is None, a.s.dtype
    gates, lr, s1 = torch.empty_like(a.gates), torch.empty_like(a.lr), torch.empty_like(a.s)
    call("gate_reverse", dtype, (*rows, wide), a.gates, a.lr, b_s2, b_v2, e.s2, e.v2, h.gates, h.lr, gates, lr)
    by_w4 = _weight_grad(a.hidden2, gates, h.hidden2, e.gates, 3 * width)
    by_b4 = _bias_grad(gates, 3 * width)
    slope2 = torch.bmm(gates, w.w4[:, :, :wide].transpose(1, 2))
    call("bend", dtype, (slope2.numel(),), a.slope2, a.curve2, e.hidden2, h.slope2, slope2)
    by_w3, by_b3 = _weight_grad(a.joined, slope2, h.joined, e.slope2), _bias_grad(slope2)
    joined = torch.bmm(slope2, w.w3.transpose(1, 2))
    call("norm_reverse", dtype, rows, a.joined, a.lr, b_s2, joined, e.joined, h.joined, h.lr, lr, s1)
    flat = members, 3 * atoms, -1
    of_tangent = (None, None) if h.v1 is None else (h.v1.view(*flat), e.lr.view(*flat))
    by_mix = _weight_grad(a.v1.view(*flat), lr.view(*flat), *of_tangent)
    v1 = _map_back(lr, w.mix, b_v2)
    x, by_filters = torch.zeros_like(a.x), torch.empty_like(w.filters)
    record.tiles("reverse", first, a.x, w.filters, s1, v1, h.x, h_stretch, h_unit, e.s1, e.v1, x, by_filters)
    if first:
        p, v = x, None
    else:
        p, v = torch.empty_like(a.p), torch.empty_like(a.v)
        call("send_reverse", dtype, rows, a.p, a.v, x, v1, e.x, h.p, h.v, p, v)
    by_w2, by_b2 = _weight_grad(a.hidden1, p, h.hidden1, e.p, 3 * width), _bias_grad(p, 3 * width)
    slope1 = torch.bmm(p, w.w2[:, :, : p.shape[2]].transpose(1, 2))
    call("bend", dtype, (slope1.numel(),), a.slope1, a.curve1, e.hidden1, h.slope1, slope1)
    by_w1, by_b1 = _weight_grad(a.s, slope1, h.s, e.slope1), _bias_grad(slope1)
    s = torch.baddbmm(s1, slope1, w.w1.transpose(1, 2))
    return s, v, [by_w1, by_b1, by_w2, by_b2, by_filters, by_mix, by_w3, by_b3, by_w4, by_b4]


def _activate(before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return slope (in the place of `before`), value and curvature of SiLU."""
    hidden, curve = torch.empty_like(before), torch.empty_like(before)
    call("activate", before.dtype, (before.numel(),), before, hidden, curve)
    return before, hidden, curve


def _scaled(slope: Tensor, grad: Tensor) -> Tensor:
    found = torch.empty_like(grad)
    call("scaled", grad.dtype, (grad.numel(),), slope, grad, found)
    return found


def _map(x: Tensor, weight: Tensor, bias: Tensor, outputs: int) -> Tensor:
    """Return the first `outputs` of x weight + bias."""
    return torch.baddbmm(bias.unsqueeze(1)[:, :, :outputs], x, weight[:, :, :outputs])


def _map_back(lr: Tensor, mix: Tensor, start: Tensor | None) -> Tensor:
    """Return gradients by vectors [K,N,3,F] from those by left and right, added to `start`."""
    members, rows, width = lr.shape
    turned = mix.transpose(1, 2)
    if start is None:
        return torch.bmm(lr, turned).view(members, rows // 3, 3, width // 2)
    return torch.baddbmm(start.view(members, rows, width // 2), lr, turned).view(start.shape)


def _weight_grad(q: Tensor, by_z: Tensor, h_q: Tensor | None, e_z: Tensor | None, outputs: int | None = None) -> Tensor:
    """Return q^T bz + hq^T ez, filled up with zeros to `outputs` columns."""
    found = torch.bmm(q.transpose(1, 2), by_z)
    if h_q is not None and e_z is not None:
        found.baddbmm_(h_q.transpose(1, 2), e_z)
    return _fill(found, outputs)


def _bias_grad(by_z: Tensor, outputs: int | None = None) -> Tensor:
    return _fill(by_z.sum(1), outputs)


def _fill(grad: Tensor, outputs: int | None) -> Tensor:
    missing = 0 if outputs is None else outputs - grad.shape[-1]
    return torch.nn.functional.pad(grad, (0, missing)) if missing else grad
