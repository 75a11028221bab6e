"""Runs the fused GPU kernels, in Triton's interpreter where there is no GPU, and prints how far they are from others.

A program of its own because TRITON_INTERPRET must be set before triton is imported, and must not be set for others.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import torch

from atomsieve.graphs.neighbors import build_graph
from atomsieve.models.config import HeadSpec, ModelConfig
from atomsieve.models.encoder import Wanted
from atomsieve.models.ensemble import Ensemble
from atomsieve.models.messages import message as module
from atomsieve.models.messages.layout import NAMED_LAYOUTS, PAINN, PAINN_TENSORS
from atomsieve.models.messages.message import message
from atomsieve.structures import StructureBatch
from tests.helpers import copper_oxides

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CUTOFF = 2.45


def few_atoms():
    """Return three atoms in a box, with six edges: the interpreter takes seconds for a crystal."""
    return StructureBatch(
        ptr=np.array([0, 3]),
        numbers=np.array([29, 8, 8], np.uint8),
        positions=np.array([[0.0, 0.1, 0.2], [1.7, 0.3, 0.1], [0.8, 1.6, 0.4]]),
        cell=np.eye(3)[None] * 8,
        pbc=np.ones((1, 3), bool),
        id=np.array([0]),
    )


def inputs(members, width, radial, dtype, most, shared, layout=PAINN, batch=None):
    batch = few_atoms() if batch is None else batch
    graph = build_graph(batch, CUTOFF, max_neighbors=most, device=DEVICE, dtype=dtype)
    gen = torch.Generator().manual_seed(1)
    d = graph.vec.norm(dim=1)
    k = torch.arange(1, radial + 1, dtype=dtype, device=DEVICE)
    basis = torch.sin(d[:, None] * k).expand(members, -1, -1)
    unit = (graph.vec / d[:, None]).expand(members, -1, -1)
    if not shared:
        basis, unit = basis.contiguous(), unit.contiguous()
    x = torch.randn(members, graph.n_atoms, layout.inputs, width, generator=gen, dtype=torch.float64).to(DEVICE, dtype)
    weights = torch.randn(members, radial, layout.filters * width, generator=gen, dtype=torch.float64).to(DEVICE, dtype)
    return graph, [t.detach().requires_grad_() for t in (x, basis, unit)], weights


def evaluate(implementation, *case, layout=PAINN, batch=None):
    graph, leaves, weights = inputs(*case, layout=layout, batch=batch)
    out = message(*leaves, weights, graph, implementation, Wanted(parameters=False, twice=False), layout)
    loss = (torch.tanh(out) * torch.arange(1, out.shape[2] + 1, dtype=out.dtype, device=DEVICE)[:, None]).sum()
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    return graph, [out.detach(), *(t for t in gradients if t is not None)]


def apart(a, b):
    return float((a.double() - b.double()).abs().max() / b.abs().max().clamp(min=1e-30))


def of_message(members, width, radial, dtype, most, shared, batch=None):
    graph, found = evaluate("triton", members, width, radial, dtype, most, shared, batch=batch)
    _, expected = evaluate("edges", members, width, radial, torch.float64, most, shared, batch=batch)
    differences = [apart(ours, plain) for ours, plain in zip(found, expected, strict=True)]
    return {"symmetric": graph.neighbors.symmetric, "edges": graph.n_edges, "apart": differences}


def of_layouts():
    """Return how far each named layout is from the plain message, and the largest one on a truncated list."""
    found = {}
    for layout, most in (*((layout, None) for layout in NAMED_LAYOUTS if layout != PAINN), (PAINN_TENSORS, 1)):
        case = (1, 16, 1, torch.float64, most, False)
        _, ours = evaluate("triton", *case, layout=layout)
        _, plain = evaluate("edges", *case, layout=layout)
        assert len(ours) == len(plain) == (4 if layout.pushed else 3)
        found[f"{layout} {most}"] = max(apart(a, b) for a, b in zip(ours, plain, strict=True))
    return found


def of_ensemble():
    config = ModelConfig(hidden=16, layers=2, cutoff=CUTOFF, n_basis=3)
    head = HeadSpec(name="h", level_of_theory="t", references={8: 0.0, 29: 0.0}, scale=1.0, elements={8: 1, 29: 1})
    model = Ensemble(config, [head], [0, 1]).double().to(DEVICE)  # its parameters want gradients, as in a validation
    graph = build_graph(few_atoms(), CUTOFF, dtype=torch.float64, device=DEVICE)
    which = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    found = {}
    for name, fused in (("plain", False), ("fused", True)):
        module.triton_serves = lambda *given, answer=fused: answer
        module.native_serves = lambda *given: False
        out = model(graph, which, forces=True, stress=True)
        found[name] = SimpleNamespace(energy=out.energy.detach(), forces=out.forces, virial=out.virial)
    return {
        name: apart(getattr(found["fused"], name), getattr(found["plain"], name))
        for name in ("energy", "forces", "virial")
    }


def refusal():
    graph, leaves, weights = inputs(1, 16, 2, torch.float64, None, False)
    out = message(*leaves, weights.requires_grad_(), graph, "triton", Wanted(parameters=False, twice=False))
    try:
        out.sum().backward()
    except RuntimeError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    double, single = torch.float64, torch.float32
    print(
        json.dumps(
            {
                "shared": of_message(2, 16, 3, double, None, True),
                "odd widths": of_message(1, 21, 5, double, None, False),
                "truncated": of_message(1, 16, 1, double, 3, False, copper_oxides(1)),
                "single": of_message(1, 16, 4, single, None, False),
                "layouts": of_layouts(),
                "ensemble": of_ensemble(),
                "refusal": refusal(),
            }
        )
    )
