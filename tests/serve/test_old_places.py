"""Imports that earlier documentation and model repositories name still work, and give the same objects."""

from __future__ import annotations

import importlib

import pytest

PLACES = {
    "atomsieve.serve.remote": ("RemotePredictor", "atomsieve.remote"),
    "atomsieve.serve.aio": ("AsyncRemotePredictor", "atomsieve.remote"),
    "atomsieve.serve.transport": ("Credentials", "atomsieve.remote"),
    "atomsieve.serve.triton_model": ("TritonPythonModel", "atomsieve.serve.model.triton_model"),
}


@pytest.mark.parametrize("old", PLACES)
def test_an_old_place_gives_the_object_of_the_new_one(old):
    name, new = PLACES[old]
    assert getattr(importlib.import_module(old), name) is getattr(importlib.import_module(new), name)
