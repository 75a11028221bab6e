"""A training whose end is short: errors on the test files and the ensemble; no domain, no calibration, no plots.

    python benchmarks/judge/quick_training.py train.yaml

The training itself, its split and its metrics.json are those of `atomsieve train`. For many short trainings, whose ends
would else take longer than they do.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np


def finish_quickly(
    config: Any, prepared: Any, digests: Any, contents: Any, ensemble: Any, group: Any, console: Any
) -> None:
    """Do of `atomsieve.train.finish.finish` what errors need."""
    from atomsieve.gfm import save_gfm
    from atomsieve.train.data.split import TEST
    from atomsieve.train.metrics import compute_validation_metrics, write_metrics
    from atomsieve.train.validation import validate

    material = prepared.material
    rows = np.flatnonzero(prepared.part == TEST)
    found = validate(ensemble, material.store, material.labels, rows, material.sizes, config.batch, group)
    if group.is_first:
        write_metrics(config.output, {"test": compute_validation_metrics(found, material.store.catalog.sources)})
        save_gfm(config.output / "gfm", ensemble.cpu(), default_head=config.default_head, overwrite=True)
    group.barrier()


def main() -> None:
    """Train the configuration that is named on the command line."""
    import atomsieve.train.run as module
    from atomsieve.cli.common import console
    from atomsieve.train.config import load_config

    module.finish = finish_quickly  # type: ignore[assignment]
    module.train(load_config(Path(sys.argv[1])), console())


if __name__ == "__main__":
    from atomsieve.cli.launch import relaunch

    relaunch()
    main()
