"""AtomSieve: train ensembles of multi-head graph foundation models for atomistic systems, and screen candidates.

    import atomsieve
    from ase.build import bulk

    predictor = atomsieve.load_ensemble("gfm/", head="emt")          # a Predictor
    atoms = bulk("Cu")
    batch = atomsieve.StructureBatch.from_ase([atoms])
    prediction = predictor(batch, want={"energy", "forces", "spread"})
    atoms.calc = atomsieve.GFMCalculator("gfm/", head="emt")
    result = atomsieve.screen("candidates.bp", "gfm/", top=100)      # the same as the command `screen run`
    result = atomsieve.train("train.yaml")                           # the same as the command `atomsieve train`

Names are imported on first use: `import atomsieve` loads neither torch nor any other library.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomsieve.version import __version__

if TYPE_CHECKING:
    from atomsieve import screen, train
    from atomsieve.calculators import GFMCalculator
    from atomsieve.predict import Predictor
    from atomsieve.structures import StructureBatch

__all__ = ["GFMCalculator", "Predictor", "StructureBatch", "__version__", "load_ensemble", "screen", "train"]

_HOMES = {"GFMCalculator": "calculators", "Predictor": "predict", "StructureBatch": "structures"}
_ROOMS = ("screen", "train")
"""Packages that can be called: `atomsieve.screen(...)` screens, `atomsieve.train(...)` trains."""


def load_ensemble(
    folder: str | Path,
    head: str | None = None,
    precision: str = "fp32",
    device: str = "cpu",
    backend: str = "native",
) -> Predictor:
    """Open a gfm/ folder as a `Predictor`, checking every file against its manifest.

    head : the head used when a call names none; None takes the folder's default head, "auto" mixes all heads by
        composition.
    precision : "fp64", "fp32", or "bf16" (matrix products only). The command line has the same default; `GFMCalculator`
        has fp64.
    device : "cpu", "cuda", "cuda:N" or "auto".
    backend : "native"; "onnx", "torchscript" or "pt2" where `atomsieve export` made one; or "auto", the fastest that
        was checked on this machine.

    Raises
    ------
    DataError
        if the folder is damaged; UsageError for a name outside the allowed ones, with the nearest.
    """
    from atomsieve.predict import Predictor

    return Predictor.load(folder, head=head, precision=precision, device=device, backend=backend)


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    from atomsieve.errors import nearest

    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{nearest(name, __all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
