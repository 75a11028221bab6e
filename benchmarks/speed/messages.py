"""Time the message operation of every compiled layout against plain edges, and PaiNN's kernels against another build.

    OMP_NUM_THREADS=1 python benchmarks/speed/messages.py [--members 4] [--channels 64] [--radial 9] [--rounds 15]
    OMP_NUM_THREADS=1 python benchmarks/speed/messages.py --against PATH/TO/_kernels_v3....so

One line for each layout: energies and forces (forward, and the gradient by distance), and a training step (forward,
first and second derivative). Times are of the process, in turns; ratios are medians. With `--against`, PaiNN alone: its
calls also go to the library of another build, and the line says whether the bytes of all results are equal.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch
from ensemble import crystals
from torch import Tensor

from atomsieve.graphs import Graph, build_graph
from atomsieve.models import ModelConfig
from atomsieve.models.basis import Geometry
from atomsieve.models.encoder import Wanted
from atomsieve.models.messages import buffers
from atomsieve.models.messages import message as messages
from atomsieve.models.messages.layout import NAMED_LAYOUTS, PAINN, Layout

CUTOFF = 4.5


class Case:
    """Inputs of one layout, and the calls that are timed."""

    def __init__(self, layout: Layout, graph: Graph, members: int, channels: int, radial: int) -> None:
        gen = torch.Generator().manual_seed(0)
        config = ModelConfig(hidden=channels, layers=1, cutoff=CUTOFF, n_basis=radial - 1)
        self.layout, self.graph, self.config, self.members = layout, graph, config, members
        dtype = graph.vec.dtype
        self.x = torch.randn(members, graph.n_atoms, layout.inputs, channels, generator=gen, dtype=dtype)
        self.weights = torch.randn(members, radial, layout.filters * channels, generator=gen, dtype=dtype)
        self.x.requires_grad_(), self.weights.requires_grad_()

    def geometry(self) -> Geometry:
        """Return leaves without gradients."""
        return Geometry.build(self.graph.vec, self.config, self.members, differentiable=True)

    def forces(self) -> list[Tensor]:
        """Return the message and its gradients for forces."""
        geometry = self.geometry()
        wanted = Wanted(parameters=False, twice=False)
        out = messages.receive(self.x, geometry, self.weights.detach(), self.graph, self.layout, wanted)
        found = torch.autograd.grad(out.sum(), [self.x, *geometry.leaves], allow_unused=True)
        return [out.detach(), *(t for t in found if t is not None)]

    def training(self) -> list[Tensor]:
        """Return gradients of a loss on the message and on its gradients by the geometry."""
        geometry, wanted = self.geometry(), Wanted(parameters=False)
        out = messages.receive(self.x, geometry, self.weights, self.graph, self.layout, wanted)
        found = torch.autograd.grad(out.sum(), geometry.leaves, create_graph=True, allow_unused=True)
        wanted.geometry, wanted.parameters = False, True
        loss = out.pow(2).sum() + geometry.pull_back(*found).mul(self.graph.vec).sum()
        return list(torch.autograd.grad(loss, [self.x, self.weights]))


def compare(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Return the median of the ratios of times of the first to the second, called in turns, and the second's ms."""
    ratios, times = [], []
    for k in range(rounds + 1):
        taken = {}
        for call in (first, second) if k % 2 else (second, first):
            start = time.process_time()
            call()
            taken[call] = time.process_time() - start
        if k:  # the first round warms up
            ratios.append(taken[first] / taken[second])
            times.append(taken[second])
    return statistics.median(ratios), 1e3 * statistics.median(times)


def on_edges(call: Callable[[], object]) -> Callable[[], object]:
    """Return a call that takes plain edges."""

    def called() -> object:
        with mock.patch.object(messages, "native_serves", return_value=False):
            return call()

    return called


def with_library(call: Callable[[], object], path: str) -> Callable[[], object]:
    """Return a call that takes the compiled kernels of another build."""
    library = ctypes.CDLL(path)

    def called() -> object:
        with mock.patch.object(buffers, "kernels", return_value=library):
            return call()

    return called


def main() -> None:
    """Print one line for each layout and precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--radial", type=int, default=9)
    parser.add_argument("--structures", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--against", help="compiled kernels of another build, for PaiNN alone")
    args = parser.parse_args()
    for dtype in (torch.float32, torch.float64):
        graph = build_graph(crystals(args.structures, 20), CUTOFF, dtype=dtype)
        print(f"{dtype}: {graph.n_atoms} atoms, {graph.n_edges} edges, {args.members} members x {args.channels}")
        for layout in (PAINN,) if args.against else NAMED_LAYOUTS:
            case = Case(layout, graph, args.members, args.channels, args.radial)
            for name, call in (("forces", case.forces), ("training", case.training)):
                if args.against:
                    other = with_library(call, args.against)
                    same = all(torch.equal(a, b) for a, b in zip(call(), other(), strict=True))  # type: ignore[call-overload]
                    words = f"(other build : this one); bytes equal: {same}"
                else:
                    other, words = on_edges(call), "times as fast as plain edges"
                ratio, ms = compare(other, call, args.rounds)
                print(f"  {layout!s:32} {name:9} {ms:8.2f} ms  {ratio:5.2f} {words}", flush=True)


if __name__ == "__main__":
    main()
