"""Training of multi-head ensembles over many sources.

The package can be called: `atomsieve.train("train.yaml")` trains as the command `atomsieve train` does.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from atomsieve.train.run import TrainResult


class _Train(ModuleType):
    """The package as a verb."""

    def __call__(
        self,
        config: str | Path | Mapping[str, Any],
        settings: Sequence[str] = (),
        *,
        overwrite: bool = False,
        console: Console | None = None,
    ) -> TrainResult:
        """Train an ensemble, or continue a training that was interrupted.

        config : a YAML file, or its keys and values. settings : changes such as "optimizer.lr=1e-3", of a file's keys.
            Other parameters and errors are those of `atomsieve.train.run.train`.
        """
        from atomsieve.train.config import apply_settings, load_config, parse_config
        from atomsieve.train.run import train

        if isinstance(config, Mapping):
            checked = parse_config(apply_settings(dict(config), settings))
        else:
            checked = load_config(Path(config), settings)
        return train(checked, console, overwrite=overwrite)


sys.modules[__name__].__class__ = _Train
