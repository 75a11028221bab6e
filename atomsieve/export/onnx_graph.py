"""Passes for ONNX: over the traced graph before it is converted, and over the model afterwards.

Converters write Python numbers as FP32, write partial assignments as ScatterND, and split through sequences. The
passes remove all of that before conversion, exactly: none compares numbers within a tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from atomsieve.errors import AtomSieveError
from atomsieve.export.interface import Slot

IR_VERSION = 8
"""Version of the file format; the first to hold operator set 18, so that older programs read it too."""
aten = torch.ops.aten
_LARGEST_FOLDED = 1 << 16  # elements
_END = 1 << 62  # ends of slices from here on mean "all"


def prepare(graph: fx.GraphModule) -> fx.GraphModule:
    """Rewrite a traced graph in place for conversion to ONNX, and return it."""
    for rewrite in (_drop_copies, _plain_slices, _fold_constants, _exact_numbers):
        rewrite(graph)
        graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _replace(node: fx.Node, by: fx.Node) -> None:
    by.meta = by.meta or dict(node.meta)
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def _calls(graph: fx.GraphModule, *targets: Any) -> Iterable[Any]:
    return [n for n in graph.graph.nodes if n.op == "call_function" and n.target in targets]


def _drop_copies(graph: fx.GraphModule) -> None:
    """Remove operations that return their argument; nothing in the graph writes in place."""
    for node in _calls(graph, aten.alias.default, aten.detach.default, aten.clone.default, aten.slice.Tensor):
        if node.target is not aten.slice.Tensor or _is_whole_axis(*node.args[1:]):
            _replace(node, node.args[0])
    for node in _calls(graph, aten.view.default, aten._unsafe_view.default):
        node.target = aten.reshape.default  # a view may have needed the copy


def _is_whole_axis(dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> bool:
    return start in (None, 0) and (end is None or (isinstance(end, int) and end >= _END)) and step == 1


def _plain_slices(graph: fx.GraphModule) -> None:
    """Write splits as slices, assignments to slices as concatenations, and squeeze one axis at a time."""
    at = graph.graph
    for node in _calls(graph, aten.split_with_sizes.default, aten.slice_scatter.default, aten.squeeze.dims):
        value = node.args[0]
        with at.inserting_before(node):
            if node.target is aten.split_with_sizes.default:
                sizes, dim = node.args[1], node.args[2] if len(node.args) > 2 else 0
                ends = np.cumsum([0, *sizes]).tolist()
                for user in list(node.users):
                    k = user.args[1]
                    _replace(user, at.call_function(aten.slice.Tensor, (value, dim, ends[k], ends[k + 1])))
                at.erase_node(node)
            elif node.target is aten.slice_scatter.default:
                _replace(node, _assign_slice(at, *node.args))
            else:
                axes = sorted((d % value.meta["val"].ndim for d in node.args[1]), reverse=True)
                for axis in axes:
                    value = at.call_function(aten.squeeze.dim, (value, axis))
                _replace(node, value)


def _assign_slice(
    at: fx.Graph,
    into: fx.Node,
    part: fx.Node,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> fx.Node:
    """Return `into` with a slice of one axis replaced by `part`."""
    if _is_whole_axis(dim, start, end, step):
        return part
    if step != 1:
        raise AtomSieveError(f"assignment with step {step} cannot be exported to ONNX; write it as a concatenation")
    parts = [part]
    if start not in (None, 0):
        parts.insert(0, at.call_function(aten.slice.Tensor, (into, dim, 0, start)))
    if end is not None and not (isinstance(end, int) and end >= _END):
        parts.append(at.call_function(aten.slice.Tensor, (into, dim, end, _END)))
    return at.call_function(aten.cat.default, (parts, dim))


def _buffer(graph: fx.GraphModule, value: Tensor, before: fx.Node) -> fx.Node:
    """Register a tensor with the graph and return the node that reads it."""
    name = f"constant_{sum(n.startswith('constant_') for n, _ in graph.named_buffers())}"
    graph.register_buffer(name, value)
    with graph.graph.inserting_before(before):
        return graph.graph.get_attr(name)


def _fold_constants(graph: fx.GraphModule) -> None:
    """Evaluate nodes that depend on neither inputs nor weights, such as the frequencies of a basis."""
    known: dict[fx.Node, Tensor] = {}
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if any(n not in known for n in node.all_input_nodes) or torch.Tag.nondeterministic_seeded in node.target.tags:
            continue
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: known[n])
        value = node.target(*args, **kwargs)
        if isinstance(value, Tensor) and value.numel() <= _LARGEST_FOLDED:
            known[node] = value
    for node, value in known.items():
        if any(user not in known for user in node.users):
            node.replace_all_uses_with(_buffer(graph, value.clone().contiguous(), node))


def _exact_numbers(graph: fx.GraphModule) -> None:
    """Turn numbers that FP32 cannot hold, where they meet FP64, into FP64 constants."""
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if not any(_is_double(n) for n in (node, *node.all_input_nodes)):
            continue
        inexact = [k for k, a in enumerate(node.args) if isinstance(a, float) and _rounds(a)]
        if any(isinstance(a, float) and _rounds(a) for a in node.kwargs.values()):
            raise _rounding(node)
        if not inexact:
            continue
        target = _taking_tensors(node, inexact)
        args = list(node.args)
        for k in inexact:
            like = {"dtype": torch.float64, "device": node.meta["val"].device}
            args[k] = _buffer(graph, torch.tensor(args[k], **like), node)
        node.target, node.args = target, tuple(args)


def _is_double(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.float64


def _rounds(number: float) -> bool:
    with np.errstate(over="ignore"):
        return float(np.float32(number)) != number and number == number


def _rounding(node: fx.Node) -> AtomSieveError:
    return AtomSieveError(
        f"{node.target} holds a number that ONNX would round to FP32: {node.args} {node.kwargs}; "
        "make it a FP64 buffer of the model"
    )


def _taking_tensors(node: fx.Node, places: list[int]) -> Callable[..., Any]:
    """Return the variant of an operation that takes tensors for its arguments at these places."""
    packet = node.target.overloadpacket  # type: ignore[union-attr]
    for name in packet.overloads():
        variant = getattr(packet, name)
        taken = [a for a in variant._schema.arguments if not a.is_out]
        tensors = [k for k, a in enumerate(taken) if str(a.type) in ("Tensor", "Optional[Tensor]")]
        given = [k for k, a in enumerate(node.args) if isinstance(a, fx.Node)]
        if (
            len(taken) >= len(node.args)
            and not variant._schema.name.endswith("_")
            and (set(places) | set(given) <= set(tensors))
            and not any(a.is_out for a in variant._schema.arguments)
        ):
            return variant
    raise _rounding(node)


def tidy(model: Any) -> Any:
    """Fold constants, remove unused and duplicate nodes, and strip names of files and of traced code; return a proto.

    model : an `onnx_ir.Model`.
    """
    import onnx_ir
    import onnx_ir.passes.common as passes
    from onnxscript import optimizer

    passes.InlinePass()(model)
    optimizer.fold_constants(model)
    for step in (
        passes.IdentityEliminationPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.ClearMetadataAndDocStringPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    ):
        step(model)
    return onnx_ir.to_proto(model)


def finish(model: Any, inputs: tuple[Slot, ...], outputs: tuple[Slot, ...], sizes: dict[str, int]) -> Any:
    """Name the axes of inputs and outputs, describe them, check the operators, and return the model.

    sizes : lengths of axes that are fixed in this model.

    Raises
    ------
    AtomSieveError
        if an operator is not of the standard, or not safe.
    """
    graph = model.graph
    del graph.value_info[:]
    for slots, values in ((inputs, graph.input), (outputs, graph.output)):
        for slot, value in zip(slots, values, strict=True):
            value.doc_string = f"{slot.doc}; {slot.unit}" if slot.unit else slot.doc
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            for axis in slot.axes:
                length = sizes.get(axis, axis) if isinstance(axis, str) else axis
                shape.dim.add(**({"dim_param": length} if isinstance(length, str) else {"dim_value": length}))
    _keep_zero_lengths(graph)
    graph.name = "atomsieve"
    model.ir_version = IR_VERSION
    check_operators(model)
    return model


def _keep_zero_lengths(graph: Any) -> None:
    """Let a length of zero in a computed shape mean zero (no atoms), and not "as it was"."""
    import onnx

    stored = {t.name for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[1] not in stored:
            kept = [a for a in node.attribute if a.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend([*kept, onnx.helper.make_attribute("allowzero", 1)])


def check_operators(model: Any) -> None:
    """Refuse operators that are not of the standard, or that lose updates when run by several threads."""
    foreign = sorted({f"{n.domain}.{n.op_type}" for n in model.graph.node if n.domain not in ("", "ai.onnx")})
    foreign += [f"function {f.name}" for f in model.functions]
    if foreign:
        raise AtomSieveError(f"the graph needs {', '.join(foreign)}, which ONNX does not have; use another format")
    if any(n.op_type == "ScatterND" for n in model.graph.node):
        raise AtomSieveError(
            "the graph has a ScatterND, which onnxruntime gets wrong with several threads; "
            "sum over the neighbour table or use scatter_add over one axis instead of index_add"
        )


def store_low_precision(model: Any) -> None:
    """Store weights that BF16 holds exactly as BF16, cast to FP32 where they are used."""
    import onnx

    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 3:
            continue
        bits = np.frombuffer(tensor.raw_data, "<u4")
        if not bits.size or (bits & 0xFFFF).any():
            continue
        name = tensor.name
        tensor.name = f"{name}_bf16"
        tensor.data_type = onnx.TensorProto.BFLOAT16
        tensor.raw_data = (bits >> 16).astype("<u2").tobytes()
        casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], f"{name}_cast", to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
