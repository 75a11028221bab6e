"""Whether energies, forces, stress and lengths fit together and to their elements."""

from __future__ import annotations

from atomsieve.structures.plausibility.check import Finding, check_source
from atomsieve.structures.plausibility.sample import SourceSample, check_datasets

__all__ = ["Finding", "SourceSample", "check_datasets", "check_source"]
