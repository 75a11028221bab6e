"""The device of a name, on machines with any number of GPUs."""

from __future__ import annotations

import pytest
import torch

from atomsieve.devices import choose_device, device_kind
from atomsieve.errors import AtomSieveError, UsageError


@pytest.fixture
def gpus(monkeypatch):
    def have(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return have


@pytest.mark.parametrize(
    ("count", "name", "local_rank", "device"),
    [
        (0, "auto", None, "cpu"),
        (0, "auto", 3, "cpu"),
        (2, "cpu", 1, "cpu"),
        (2, "auto", None, "cuda"),
        (2, "cuda", None, "cuda"),
        (2, "auto", 3, "cuda:1"),
        (2, "cuda", 2, "cuda:0"),
        (2, "cuda:1", 0, "cuda:1"),
    ],
)
def test_the_device_of_a_name(gpus, count, name, local_rank, device):
    gpus(count)
    found = choose_device(name, local_rank)
    assert str(found) == device
    assert device_kind(found) == device_kind(device) == device[: len("cuda")].rstrip(":")


@pytest.mark.parametrize(
    ("count", "name", "error"),
    [(0, "cuda", AtomSieveError), (2, "cuda:2", AtomSieveError), (2, "gpu", UsageError), (2, "cuda:x", UsageError)],
)
def test_a_device_that_is_not_here_is_refused(gpus, count, name, error):
    gpus(count)
    with pytest.raises(error, match="cpu"):
        choose_device(name, 0)
