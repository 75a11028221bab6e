"""Clients of served ensembles. Nothing here needs torch. Names are imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atomsieve.remote.async_predictor import AsyncRemotePredictor
    from atomsieve.remote.credentials import Credentials
    from atomsieve.remote.predictor import RemotePredictor

_HOMES = {
    "AsyncRemotePredictor": "async_predictor",
    "Credentials": "credentials",
    "RemotePredictor": "predictor",
}

__all__ = ["AsyncRemotePredictor", "Credentials", "RemotePredictor"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
