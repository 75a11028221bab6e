"""HydraGNN's state dict to an ensemble of ours and back; every key is accounted for.

Names are those of HydraGNN without the prefixes that wrappers add (`module.`, `model.`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from atomsieve.errors import DataError
from atomsieve.models.config import HeadSpec, ModelConfig
from atomsieve.models.elements import MAX_NUMBER
from atomsieve.models.encoder import MemberStack
from atomsieve.models.ensemble import Ensemble
from atomsieve.models.hydragnn.config import HYDRAGNN, HydraGNNConfig

_LINEAR = {
    "payload.first": "module_0.scalar_message_mlp.0",
    "payload.second": "module_0.scalar_message_mlp.2",
    "left": "module_1.update_U",
    "right": "module_1.update_V",
    "update.first": "module_1.update_mlp.0",
    "update.second": "module_1.update_mlp.2",
    "node_first": "module_2.0",
    "node_second": "module_2.2",
    "vector": "module_3",
}
"""Linear maps of a layer: ours, theirs."""
_SHARED, _HEADS = "graph_shared.branch-{}.{}", "heads_NN.0.branch-{}.{}"
State = Mapping[str, Tensor]


def hydragnn_config(state: State, cutoff: float = 5.0, max_neighbors: int | None = 20) -> ModelConfig:
    """Return the architecture that follows from the shapes of a state dict; cutoff (Angstrom) and neighbours do not.

    Raises
    ------
    DataError
        if it is no state dict of such a model.
    """
    layers = 1 + max((int(m[1]) for n in state if (m := re.match(r"graph_convs\.(\d+)\.", n))), default=-1)
    needed = ("graph_convs.0.module_0.filter_layer.weight", "graph_convs.0.module_2.2.weight")
    for name in needed:
        if name not in state:
            raise DataError(f"no {name} among {len(state)} names: not HydraGNN's PaiNN, or a prefix was not stripped")
    chains = [_chain(state, pattern) for pattern in (_SHARED, _HEADS)]
    if not all(chains):
        raise DataError(
            "no heads graph_shared.branch-0 and heads_NN.0.branch-0 with weights; not a model with branches"
        )
    shape = {
        "encoder": HYDRAGNN,
        "hidden": state[needed[1]].shape[0],
        "layers": layers,
        "cutoff": cutoff,
        "n_basis": state[needed[0]].shape[1],
        "basis": "sinc",
        "charge_spin": "graph_concat_projector.weight" in state,
        "max_neighbors": max_neighbors,
        "hydragnn": HydraGNNConfig(
            shared=tuple(chains[0]),
            heads=tuple(chains[1][:-1]),
            vector_bias="graph_convs.0.module_1.update_U.bias" in state,
        ),
    }
    return ModelConfig.model_validate(shape)


def _chain(state: State, pattern: str) -> list[int]:
    """Return the widths of the layers of branch 0."""
    widths, place = [], 0
    while (name := f"{pattern.format(0, place)}.weight") in state:
        widths.append(int(state[name].shape[0]))
        place += 2  # an activation lies between
    return widths


def plain_heads(count: int) -> list[HeadSpec]:
    """Return heads `branch-0`, ... without element references: they give HydraGNN's residual energies."""
    nothing = dict.fromkeys(range(1, MAX_NUMBER + 1), 0.0)
    return [
        HeadSpec(
            name=f"branch-{k}",
            level_of_theory="not stated",
            references=nothing,
            scale=1.0,
            elements={},
        )
        for k in range(count)
    ]


def from_hydragnn_state(
    state: State | Sequence[State], config: ModelConfig | None = None, heads: Sequence[HeadSpec] | None = None
) -> Ensemble:
    """Return an ensemble with the weights of a state dict, or of one for each member.

    config : None reads it off the shapes (`hydragnn_config`). heads : in the order of the branches, None takes
    `plain_heads`. Members are in FP32, or FP64 if the first state is.

    Raises
    ------
    DataError
        naming the keys that are missing, unexpected or of the wrong shape; none is ever left out.
    """
    states = [state] if isinstance(state, Mapping) else list(state)
    config = hydragnn_config(states[0]) if config is None else config
    branches = {int(m[1]) for n in states[0] if (m := re.match(r"graph_shared\.branch-(\d+)\.", n))}
    heads = plain_heads(len(branches)) if heads is None else heads
    ensemble = Ensemble(config, heads, list(range(len(states))))
    own = ensemble.state_dict()
    for k, given in enumerate(states):
        expected = {theirs: mine for mine, theirs in _places(ensemble, k)}
        wrong = sorted({*given} ^ {*expected})
        wrong += [n for n, place in expected.items() if n in given and given[n].shape != place(own).shape]
        if wrong:
            missing = [n for n in wrong if n not in given]
            extra = [n for n in wrong if n not in expected]
            shapes = [f"{n} {tuple(given[n].shape)}" for n in wrong if n in given and n in expected]
            parts = {"missing": missing, "unexpected": extra, "wrong shape": shapes}
            said = "; ".join(f"{what}: {', '.join(n[:4])} ({len(n)} in all)" for what, n in parts.items() if n)
            raise DataError(f"the state dict of member {k} does not fit the model: {said}")
    if next(iter(states[0].values())).dtype == torch.float64:
        ensemble.double()
    own = ensemble.state_dict()
    with torch.no_grad():
        for k, given in enumerate(states):
            for place, name in _places(ensemble, k):
                place(own).copy_(given[name])
    return ensemble.eval()


def to_hydragnn_state(ensemble: MemberStack, member: int = 0) -> dict[str, Tensor]:
    """Return the state dict of a member, in the names of HydraGNN; tensors are contiguous copies.

    Scales and element references of the heads are not part of it.
    """
    own = ensemble.state_dict()
    return {name: place(own).detach().clone().contiguous() for place, name in _places(ensemble, member)}


class _Place:
    """Where a tensor of HydraGNN lies in ours: part of a stacked parameter, seen in HydraGNN's shape."""

    def __init__(self, name: str, *index: int | slice, transposed: bool = False) -> None:
        self.name, self.index, self.transposed = name, index, transposed

    def __call__(self, own: State) -> Tensor:
        found = own[self.name][self.index]
        return found.t() if self.transposed else found


def _places(ensemble: MemberStack, member: int) -> Iterator[tuple[_Place, str]]:
    """Yield where each tensor of HydraGNN lies, and its name there."""
    names = ensemble.state_dict()
    row = 0 if ensemble.shallow else member
    linear = {"encoder.projector": "graph_concat_projector"}
    for k in range(ensemble.config.layers):
        linear |= {f"encoder.layers.{k}.{ours}": f"graph_convs.{k}.{theirs}" for ours, theirs in _LINEAR.items()}
        filters, theirs = f"encoder.layers.{k}.filters", f"graph_convs.{k}.module_0.filter_layer"
        yield _Place(filters, row, slice(None, -1), transposed=True), f"{theirs}.weight"
        yield _Place(filters, row, -1), f"{theirs}.bias"
    for ours, theirs in linear.items():
        if f"{ours}.weight" in names:
            yield _Place(f"{ours}.weight", row, transposed=True), f"{theirs}.weight"
        if f"{ours}.bias" in names:
            yield _Place(f"{ours}.bias", row), f"{theirs}.bias"
    options = ensemble.config.options_of(HydraGNNConfig)
    first = len(options.shared)
    for place in range(first + len(options.heads) + 1):
        pattern, at = (_SHARED, 2 * place) if place < first else (_HEADS, 2 * (place - first))
        for branch in range(len(ensemble.heads)):
            name = pattern.format(branch, at)
            yield _Place(f"readout.weights.{place}", member, branch, transposed=True), f"{name}.weight"
            yield _Place(f"readout.biases.{place}", member, branch, 0), f"{name}.bias"
