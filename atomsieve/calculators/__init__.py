"""The ensemble as a calculator: ASE, a guard on its uncertainty, batched relaxation, torch-sim.

Names are imported on first use, because ASE's plug-in search imports this package without needing them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atomsieve.calculators.change_limits import ChangeLimits
    from atomsieve.calculators.gfm import GFMCalculator
    from atomsieve.calculators.guard import Guard, GuardStop, GuardWarning
    from atomsieve.calculators.relaxation import RelaxResult, Stop, relax
    from atomsieve.calculators.remote import RemoteCalculator

_HOMES = {
    "ChangeLimits": "change_limits",
    "GFMCalculator": "gfm",
    "Guard": "guard",
    "GuardStop": "guard",
    "GuardWarning": "guard",
    "RelaxResult": "relaxation",
    "RemoteCalculator": "remote",
    "Stop": "relaxation",
    "relax": "relaxation",
}

__all__ = [
    "ChangeLimits",
    "GFMCalculator",
    "Guard",
    "GuardStop",
    "GuardWarning",
    "RelaxResult",
    "RemoteCalculator",
    "Stop",
    "relax",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
