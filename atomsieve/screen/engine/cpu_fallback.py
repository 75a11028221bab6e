"""The same ensemble on the CPU, for structures that alone are too large for the memory of a GPU."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atomsieve.devices import device_kind
from atomsieve.predict.interface import AnyPredictor

log = logging.getLogger(__name__)


@dataclass
class CpuFallback:
    """Loads the ensemble on the CPU, in the same precision, for structures that do not fit into a GPU.

    The last bits differ from those of a GPU, so the structures evaluated here are counted.

    Attributes
    ----------
    folder : the ensemble. computed : structures that were evaluated on the CPU, all heads of one counted once.
    """

    folder: Path
    computed: int = 0
    _loaded: dict[str, AnyPredictor] = field(default_factory=dict, repr=False, compare=False)

    def load_for(self, predictor: AnyPredictor) -> AnyPredictor | None:
        """Return the same predictor on the CPU, loaded at its first use; None if there is no such predictor."""
        if not predictor.capabilities.fallback or device_kind(predictor.device) == "cpu":
            return None
        if predictor.precision not in self._loaded:
            from atomsieve.predict import Predictor

            log.warning("a structure is too large for %s: the ensemble is loaded on the CPU too", predictor.device)
            self._loaded[predictor.precision] = Predictor.load(self.folder, precision=predictor.precision)
        found = self._loaded[predictor.precision]
        return found if found.ensemble_id == predictor.ensemble_id else None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out loaded predictors and the count: another process starts without them."""
        return {"folder": self.folder, "computed": 0, "_loaded": {}}
