"""The ensemble as a calculator: ASE, a guard on its uncertainty, batched relaxation, torch-sim."""

from atomsieve.calculators.gfm import GFMCalculator
from atomsieve.calculators.guard import Guard, GuardStop, GuardWarning
from atomsieve.calculators.relax import RelaxResult, Stop, relax

__all__ = ["GFMCalculator", "Guard", "GuardStop", "GuardWarning", "RelaxResult", "Stop", "relax"]
