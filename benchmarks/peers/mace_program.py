"""Train MACE for a stated processor time, predict a file, and answer a timing process. Runs where mace-torch is.

    python mace_program.py train --train train.extxyz --model model.pt --seconds 180 [--set lr=0.005 --set batch_size=5]
    python mace_program.py predict --model model.pt --data test.extxyz --out predicted.npz
    python mace_program.py serve --model model.pt --crystals crystals.npz

The training is MACE's own (`mace.cli.run_train`) with two changes that let it end in time: its learning rate follows a
cosine of the processor time used, and the weights of its second stage (energies first) set in at three quarters of
that time; both are else counted in epochs, of which there may be very few. The weights kept are the running mean at
the end. Validation, which needs time and decides nothing here, is left out; the first steps, which compile, are not
counted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import nullcontext, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # e3nn 0.4.4 reads its own constants by pickle

import numpy as np
import torch
from clock import Clock, TimeIsUp, cosine_factor

STAGE_TWO = 0.75
SETTINGS: dict[str, Any] = {
    "model": "MACE",
    "r_max": 4.5,
    "num_channels": 64,
    "max_L": 0,
    "max_ell": 2,
    "num_interactions": 2,
    "correlation": 3,
    "E0s": "average",  # least squares over the training file
    "loss": "weighted",
    "energy_weight": 1.0,
    "forces_weight": 100.0,
    "swa_energy_weight": 1000.0,
    "swa_forces_weight": 100.0,
    "lr": 0.01,
    "batch_size": 5,
    "ema_decay": 0.99,
    "valid_fraction": 0.05,
    "default_dtype": "float32",
    "seed": 0,
}
"""Options of mace_run_train, for minutes of one core: l = 3 leaves it too few steps (docs/benchmarks.md).

Those that are not here keep its defaults (Adam with AMSGrad, clipping at 10)."""


def train(given: argparse.Namespace) -> None:
    """Train, and write the model and what there is to say of the training."""
    from mace.cli import run_train
    from mace.tools import build_default_arg_parser, scripts_utils

    module = sys.modules["mace.tools.train"]  # the package gives the name to a function in it
    settings = SETTINGS | dict(word.split("=", 1) for word in given.settings)
    place = given.model.resolve().parent
    options = [f"--{key}={value}" for key, value in settings.items()]
    options += ["--name=peer", f"--train_file={given.train}", f"--work_dir={place}", "--device=cpu", "--ema"]
    options += ["--max_num_epochs=100000", "--eval_interval=100000", "--num_workers=0", "--pin_memory=False"]
    args = build_default_arg_parser().parse_args(options)
    clock, original = Clock(given.seconds), module.take_step
    change = argparse.Namespace(
        **(vars(args) | {"energy_weight": args.swa_energy_weight, "forces_weight": args.swa_forces_weight})
    )
    second = scripts_utils.get_loss_fn(change, False, False)
    seen: dict[str, Any] = {}

    def take_step(model: Any, loss_fn: Any, batch: Any, optimizer: Any, ema: Any, **rest: Any) -> Any:
        clock.check()
        seen.update(model=model, ema=ema)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * cosine_factor(clock.part)
        loss = second if clock.part >= STAGE_TWO else loss_fn
        out = original(model=model, loss_fn=loss, batch=batch, optimizer=optimizer, ema=ema, **rest)
        clock.count(int(batch.num_graphs))
        return out

    module.take_step = take_step
    module.evaluate = lambda **_: (0.0, {})
    module.valid_err_log = lambda *_, **__: None
    with suppress(TimeIsUp):
        run_train.run(args)
    model, ema = seen["model"], seen["ema"]
    with ema.average_parameters() if ema is not None else nullcontext():
        torch.save(model, given.model)
    parameters = sum(p.numel() for p in model.parameters())
    about = {"steps": clock.steps, "structures": clock.structures, "core_seconds": clock.used}
    given.model.with_suffix(".json").write_text(
        json.dumps({"training": about, "parameters": parameters, "settings": settings})
    )


def load(path: Path) -> tuple[Any, Any]:
    """Return the model and the numbers of its elements."""
    from mace.tools import utils

    # MACE's models are pickles of whole objects; this one was written by `train` above, of the same run.
    model = torch.load(path, weights_only=False, map_location="cpu").eval()
    torch.set_default_dtype(next(model.parameters()).dtype)
    for p in model.parameters():
        p.requires_grad_(False)
    return model, utils.AtomicNumberTable([int(z) for z in model.atomic_numbers])


def make_batches(images: list[Any], model: Any, table: Any, size: int) -> Any:
    """Return an iterable of MACE's batches of ASE structures; neighbour lists are made here."""
    from mace import data
    from mace.tools import torch_geometric

    configs = [data.config_from_atoms(atoms) for atoms in images]
    graphs = [data.AtomicData.from_config(c, z_table=table, cutoff=float(model.r_max)) for c in configs]
    return torch_geometric.dataloader.DataLoader(graphs, batch_size=size, shuffle=False, drop_last=False)


def predict(given: argparse.Namespace) -> None:
    """Write energies [S] and forces [N,3] of the structures of a file."""
    from ase.io import read

    model, table = load(given.model)
    energies, forces = [], []
    for batch in make_batches(read(given.data, index=":", format="extxyz"), model, table, 16):
        out = model(batch.to_dict(), compute_stress=False)
        energies.append(out["energy"].detach().double().numpy())
        forces.append(out["forces"].detach().double().numpy())
    np.savez(given.out, energy=np.concatenate(energies), forces=np.concatenate(forces))


def serve(given: argparse.Namespace) -> None:
    """Answer each line with wall and processor seconds: `whole`, neighbour lists included; `model`, prepared before."""
    from ase import Atoms

    model, table = load(given.model)
    arrays = np.load(given.crystals)
    ends = arrays["ptr"]
    images = [
        Atoms(arrays["numbers"][a:b], arrays["positions"][a:b], cell=arrays["cell"][k], pbc=True)
        for k, (a, b) in enumerate(pairwise(ends))
    ]

    def evaluate(batches: Any) -> None:
        for batch in batches:
            model(batch.to_dict(), compute_stress=False)["forces"].detach().numpy()

    ready = list(make_batches(images, model, table, given.size))
    print("> " + json.dumps({"parameters": sum(p.numel() for p in model.parameters())}), flush=True)
    for line in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        evaluate(ready if line.strip() == "model" else make_batches(images, model, table, given.size))
        print("> " + json.dumps([time.perf_counter() - wall, time.process_time() - processor]), flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("train", "predict", "serve"))
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--crystals", type=Path)
    parser.add_argument("--size", type=int, default=16, help="structures in a batch of `serve`")
    given = parser.parse_args()
    torch.set_num_threads(1)
    {"train": train, "predict": predict, "serve": serve}[given.task](given)


if __name__ == "__main__":
    main()
