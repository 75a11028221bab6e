"""Run under a launcher: write the gradient and the loss of the first global batch, as this many ranks see it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from atomsieve.structures.dataset.open import open_structures
from atomsieve.train.config import parse_config
from atomsieve.train.distributed import join_process_group, leave_process_group
from atomsieve.train.log import RunLog
from atomsieve.train.loop import Run
from atomsieve.train.run import _ensemble, prepare


def main() -> None:
    config = parse_config(yaml.safe_load(Path(sys.argv[1]).read_text()))
    group = join_process_group("cpu")
    with open_structures(config.data[0].path) as reader:
        prepared = prepare(config, [reader])
        ensemble = _ensemble(config, prepared.heads, [0, 1], group)
        run = Run(ensemble, prepared.material, group, Path(sys.argv[2]), RunLog(None), order_seed=0, hours=None)
        batch = run._make(run.order.epoch(0))(0)
        parts = run.gradient(batch, config.loss.at(0.0))
        extra = group.sum_gradients(run.parameters, parts.reshape(-1))
        if group.is_first:
            out = {name: p.grad.contiguous() for name, p in ensemble.named_parameters() if p.grad is not None}
            ranks = torch.tensor([group.size])
            save_file({**out, "loss": extra.contiguous(), "ranks": ranks}, sys.argv[3])
    leave_process_group()


main()
