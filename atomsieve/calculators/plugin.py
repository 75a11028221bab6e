"""ASE's plug-in: the calculator `gfm`, found by the entry point group `ase.plugins` (ASE 3.29 and later).

`ase run` looks in a fixed list and in what was registered before it starts, so
`python -m atomsieve.calculators run gfm ...` is ASE's own command with the calculator registered.
"""

from __future__ import annotations

from typing import Any

NAME = "gfm"
IMPLEMENTATION = "atomsieve.calculators.gfm.GFMCalculator"


def _plugins() -> set[Any]:
    try:
        from ase._4.plugins.plugin import CalculatorPlugin
    except ImportError:  # an older ASE, which looks for no calculators
        return set()
    return {CalculatorPlugin(NAME, implementation=IMPLEMENTATION)}


__ase_plugins__ = _plugins()


def register() -> None:
    """Make `gfm` known to ASE by name: `ase.calculators.calculator.get_calculator_class("gfm")`; again does nothing."""
    from ase.calculators import calculator

    from atomsieve.calculators.gfm import GFMCalculator

    if NAME not in calculator.external_calculators:
        calculator.register_calculator_class(NAME, GFMCalculator)
