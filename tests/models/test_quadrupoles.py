"""PaiNN with quadrupoles: what it has in common with PaiNN, and its options (the kit runs in tests/testing)."""

from __future__ import annotations

import functools
from unittest import mock

import pytest
import torch

from atomsieve.errors import UsageError
from atomsieve.graphs.neighbors import build_graph
from atomsieve.models.messages.message import message
from atomsieve.models.painn import encoder as painn
from atomsieve.models.quadrupoles import block
from atomsieve.native import kernels
from atomsieve.testing.cells import crystals
from atomsieve.testing.encoders import build_untrained, check_symmetries, evaluate
from atomsieve.train.config import parse_config
from tests.helpers import copper_oxides, tiny_ensemble
from tests.models.test_painn_training import HEADS, apart, gradients


def test_direct_forces_turn_with_the_structure():
    check_symmetries(build_untrained("quadrupoles", forces="direct"))


def test_without_quadrupoles_it_is_painn():
    ours, painn = build_untrained("quadrupoles"), build_untrained("painn")
    weights = painn.state_dict()
    state = {name: weights.get(name, torch.zeros_like(t)) for name, t in ours.state_dict().items()}
    assert set(weights) < set(state)
    ours.load_state_dict(state)  # the networks of all blocks give zero
    found, expected = evaluate(ours, crystals(3)), evaluate(painn, crystals(3))
    for name in ("energy", "forces", "virial"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(kernels() is None, reason="the compiled kernels are not built here")
@pytest.mark.parametrize("config", [{}, {"quadrupoles": {"blocks": 2, "channels": 16}, "charge_spin": True}])
def test_training_by_compiled_layers_is_that_by_plain_autograd_over_edges(config):
    model = tiny_ensemble(2, encoder="quadrupoles", **config).double()
    graph = build_graph(copper_oxides(7), model.config.cutoff, dtype=torch.float64)
    with mock.patch.object(painn, "train_on_cpu", wraps=painn.train_on_cpu) as compiled:
        _, ours = gradients(model, graph, HEADS)
    assert compiled.called
    edges = functools.partial(message, implementation="edges")
    with (
        mock.patch.object(painn, "training_serves", return_value=False),
        mock.patch.multiple(painn, message=edges, layer_serves=lambda *given: False),
        mock.patch.object(block, "message", edges),
    ):
        _, plain = gradients(model, graph, HEADS)
    assert apart(ours.values(), plain.values()) < 1e-10


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"encoder": "painn", "quadrupoles": {"channels": 16}}, ("quadrupoles", "painn")),
        ({"encoder": "quadrupoles", "quadrupoles": {"chanels": 16}}, ("chanels", "channels")),
        ({"encoder": "quadrupoles", "quadrupoles": {"channels": 0}}, ("channels", "0")),
        ({"encoder": "quadrupole"}, ("quadrupole", "quadrupoles")),
    ],
)
def test_options_in_the_wrong_place_are_refused_with_the_remedy(model, words):
    with pytest.raises(UsageError) as caught:
        parse_config({"data": [{"path": "train.bp"}], "model": model})
    assert all(word in str(caught.value) for word in words)
