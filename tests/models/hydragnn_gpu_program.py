"""Runs HydraGNN's fast path by the steps of a GPU, in Triton's interpreter where there is none; prints differences.

A program of its own because TRITON_INTERPRET must be set before triton is imported, and must not be set for others.
"""

from __future__ import annotations

import json

import torch

from atomsieve.models.hydragnn.fast import model as hydragnn_fast
from atomsieve.models.hydragnn.fast.gpu_steps import GpuSteps
from atomsieve.models.hydragnn.fast.model import FastHydraGNN
from tests.models.test_hydragnn_fast import (
    SMALL,
    awkward,
    crystals,
    drawn,
    eager,
    lists,
    random_boxes,
    relative,
    run_eager,
    run_fast,
    worst,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def small_crystals():
    return crystals().slice(0, 2)


def on_device(model, precision="fp64"):
    return FastHydraGNN(model.state_dict(), precision, device=DEVICE, steps=GpuSteps())


def evaluate(fast, batch, graph, given, **options):
    def there(x):
        return x.to(DEVICE)

    n = graph.neighbors
    found = fast(
        there(graph.numbers),
        there(graph.vec),
        there(n.sender),
        there(n.receiver),
        there(n.row_ptr),
        there(graph.ptr),
        *there(given[0]).unbind(1),
        there(given[1]),
        **options,
    )
    return type(found)(*(None if x is None else x.cpu() for x in found))


def difference(batch, neighbors=20, precision="fp64", **shape):
    model = eager.build(eager.Shape(**{**SMALL, **shape}))
    graph, given = lists(batch, neighbors), drawn(len(batch), 3)
    found = evaluate(on_device(model, precision), batch, graph, given, features=True)
    exact = run_fast(FastHydraGNN(model.state_dict(), "fp64"), graph, *given, features=True)
    return max(worst(found, run_eager(model, graph, *given)), relative(found.features.double(), exact.features))


def pieces():
    """Blocks and groups of few atoms, and working arrays that hold what an earlier batch left in them."""
    model, batch = eager.build(eager.Shape(**SMALL)), random_boxes([4, 2, 7, 3])
    graph, given = lists(batch, 3), drawn(4, 3)
    fast = on_device(model)
    kind = DEVICE.type
    hydragnn_fast.BLOCK_ATOMS[kind], hydragnn_fast.GROUP_ATOMS[kind] = 6, 12
    return worst(evaluate(fast, batch, graph, given), run_eager(model, graph, *given))


def energies_alone():
    model, batch = eager.build(eager.Shape(**SMALL)), small_crystals()
    graph, given = lists(batch, 3), drawn(2, 3)
    fast = on_device(model)
    alone = evaluate(fast, batch, graph, given, gradients=False)
    both = evaluate(fast, batch, graph, given)
    return torch.equal(alone.energy_per_head, both.energy_per_head) and not alone.edge_grad.any()


if __name__ == "__main__":
    boxes, few = random_boxes([2, 5, 1, 8]), random_boxes([2, 4, 1])
    print(
        json.dumps(
            {
                "boxes": difference(boxes),
                "biased vectors": difference(few, 3, vector_bias=True),
                "three radial functions": difference(few, 3, radial=3),
                "crystals": difference(crystals(), 4),
                "few edges": difference(awkward()),
                "fp32": difference(small_crystals(), 4, "fp32"),
                "bf16": difference(small_crystals(), 4, "bf16"),
                "pieces": pieces(),
                "energies alone": energies_alone(),
            }
        )
    )
