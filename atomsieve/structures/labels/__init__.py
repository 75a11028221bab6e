"""Labels of structures as files state them: under which names, in which units, and what is left."""

from __future__ import annotations

from atomsieve.structures.labels.find import RESIDUE, FoundLabels, Reasons, find_labels, round_residue
from atomsieve.structures.labels.names import NAMES, LabelKeys
from atomsieve.structures.labels.tally import LabelTally

__all__ = ["NAMES", "RESIDUE", "FoundLabels", "LabelKeys", "LabelTally", "Reasons", "find_labels", "round_residue"]
