"""The same ensemble on the CPU, for structures that alone are too large for the memory of a GPU."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atomsieve.devices import device_kind

log = logging.getLogger(__name__)


@dataclass
class CpuFallback:
    """Evaluates on the CPU what does not fit into a GPU, with the same ensemble in the same precision.

    The last bits differ from those of a GPU, so the structures evaluated here are counted.

    Attributes
    ----------
    folder : the ensemble. computed : structures that were evaluated here, once for each head.
    """

    folder: Path
    computed: int = 0
    _loaded: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def twin(self, predictor: Any) -> Any:
        """Return the same predictor on the CPU, loaded at its first use; None if `predictor` has no such twin."""
        from atomsieve.predict import Predictor

        predictor = getattr(predictor, "_predictor", predictor)  # of lanes, the one that computes
        if type(predictor) is not Predictor or device_kind(predictor.device) == "cpu":
            return None
        if predictor.precision not in self._loaded:
            log.warning("a structure is too large for %s: the ensemble is loaded on the CPU too", predictor.device)
            self._loaded[predictor.precision] = Predictor.load(self.folder, precision=predictor.precision)
        found = self._loaded[predictor.precision]
        return found if found.ensemble_id == predictor.ensemble_id else None

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "computed": 0, "_loaded": {}}
