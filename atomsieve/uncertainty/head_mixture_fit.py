"""Fit the mixture of heads: to the source that a composition belongs to."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from atomsieve.errors import DataError
from atomsieve.models.elements import MAX_NUMBER
from atomsieve.uncertainty.head_mixture import Mixture

HIDDEN = (128, 64)
"""Widths of the hidden layers, as HydraGNN's branch-weight network has them."""
PART = 0.1
"""Part of the compositions on which the fit is judged, and stopped."""
PATIENCE = 15
MOST_ROUNDS = 200
BATCH, STEPS = 512, 8
"""Compositions of a step at most, and steps of a round at least."""


def fit_mixture(
    counts: NDArray[np.float64],
    head: NDArray[np.integer[Any]],
    known: NDArray[np.bool_],
    names: tuple[str, ...],
    *,
    inputs: str = "fractions",
    hidden: tuple[int, ...] = HIDDEN,
    seed: int = 0,
) -> Mixture:
    """Fit a mixture by cross entropy to the heads that compositions belong to; every head counts alike.

    A weight is then the share that a head's source has among structures of this composition, were all sources equally
    large. Equal compositions stay together when a tenth is held out, and each head keeps at least one for the fit; the
    fit ends when it gets no better on the tenth held out.

    counts : [M,118] atoms of each element; head : [M] index of the head. known : [H,118], as a mixture is called with;
        structures with an element that their own head lacks are left out.

    Raises
    ------
    DataError
        with fewer than two heads in the data.
    """
    usable = (counts @ (~known).T.astype(np.float64) == 0)[np.arange(len(head)), head] & (counts.sum(1) > 0)
    counts, head = counts[usable], head[usable]
    present = np.unique(head)
    if len(present) < 2:
        raise DataError(f"a mixture needs structures of at least two heads, got those of {len(present)}")
    held = _hold_out(counts, head, seed)
    x = counts / counts.sum(1, keepdims=True) if inputs == "fractions" else counts
    scale = np.maximum(x[~held].std(0).max(), 1e-3)
    lacks = counts @ (~known).T.astype(np.float64) > 0
    seen = np.zeros(len(names), bool)
    seen[present] = True
    size = np.bincount(head[~held], minlength=len(names))
    of_head = np.where(size > 0, 1.0 / np.maximum(size, 1), 0.0)
    data = [torch.from_numpy(a) for a in (x / scale, head.astype(np.int64), lacks | ~seen, of_head[head])]
    train, test = ([t[torch.from_numpy(mask)] for t in data] for mask in (~held, held))
    widths = [MAX_NUMBER, *hidden, len(names)]
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for inner, outer in pairwise(widths):
            layers += [nn.Linear(inner, outer), nn.ReLU()]
    net = nn.Sequential(*layers[:-1]).double()
    judged = test if len(test[0]) else train
    best, rounds = _train(net, train, judged, torch.Generator().manual_seed(seed))
    maps = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in net if isinstance(m, nn.Linear)]
    maps[0] = (maps[0][0] / scale, maps[0][1])
    maps[-1][1][~seen] = -1e3  # heads without data get no weight
    about = {
        "structures": len(counts),
        "held": int(held.sum()),
        "rounds": rounds,
        "seed": seed,
        "cross_entropy": best,
        "uniform": _uniform(judged),
        "of_head": {names[k]: int((head == k).sum()) for k in present.tolist()},
    }
    return Mixture(names, tuple((w.astype(np.float32), b.astype(np.float32)) for w, b in maps), inputs, about)


def _train(
    net: nn.Sequential, train: list[Tensor], judged: list[Tensor], generator: torch.Generator
) -> tuple[float, int]:
    """Train until the loss on `judged` gets no better, and keep the best weights; return that loss and the rounds."""
    best, since, rounds = np.inf, 0, 0
    state = net.state_dict()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    for rounds in range(1, MOST_ROUNDS + 1):
        order = torch.randperm(len(train[0]), generator=generator)
        for some in order.split(min(BATCH, 1 + len(order) // STEPS)):
            optimizer.zero_grad()
            _loss(net, [t[some] for t in train]).backward()
            optimizer.step()
        with torch.no_grad():
            found = float(_loss(net, judged))
        if found < best - 1e-4:
            best, since = found, rounds
            state = {name: t.clone() for name, t in net.state_dict().items()}
        elif rounds - since >= PATIENCE:
            break
    net.load_state_dict(state)
    return best, rounds


def _hold_out(counts: NDArray[np.float64], head: NDArray[np.integer[Any]], seed: int) -> NDArray[np.bool_]:
    """Return which rows are kept from the fit: all of a tenth of the different compositions, none of a head's last."""
    same = np.unique(counts / np.maximum(counts.sum(1, keepdims=True), 1), axis=0, return_inverse=True)[1].ravel()
    chosen = np.random.default_rng(seed).random(same.max(initial=0) + 1) < PART
    for k in np.unique(head):
        own = same[head == k]
        if chosen[own].all():  # the fit would learn that this head never serves
            chosen[own[0]] = False
    return np.asarray(chosen[same])


def _loss(net: nn.Module, data: list[Tensor]) -> Tensor:
    """Return the mean cross entropy over heads of `inputs [M,118], head [M], lacks [M,H], weight [M]`."""
    x, head, lacks, weight = data
    logits = net(x).masked_fill(lacks, -torch.inf)
    each = nn.functional.cross_entropy(logits, head, reduction="none")
    return (each * weight).sum() / weight.sum()


def _uniform(data: list[Tensor]) -> float:
    """Return the cross entropy of equal weights, for comparison."""
    _, head, lacks, weight = data
    equal = torch.zeros(lacks.shape, dtype=torch.float64).masked_fill(lacks, -torch.inf)
    each = nn.functional.cross_entropy(equal, head, reduction="none")
    return float((each * weight).sum() / weight.sum())
