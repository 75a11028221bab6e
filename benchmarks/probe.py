"""Probe candidates for the encoder in plain PyTorch before anyone writes kernels for one.

    python benchmarks/real_data.py --data ../shared/data --work real_data --stage convert
    python benchmarks/probe.py --data real_data --work probe   # train what has no result, print the table
    python benchmarks/probe.py --stage check                   # the kit's checks of every candidate

Each candidate trains one member with a head for each of four sources: same data, order, optimiser, width, layers,
cutoff and steps; the learning rate falls along a cosine that ends with the run. Errors on the test files are those of
the running mean of the weights, after half of the steps and at the end. Processor time is that of the training alone.

Expected error at equal time. A compiled version of candidate c takes r = M_c / M_painn times PaiNN's time per step,
where M = edges per atom x multiply-adds per edge + multiply-adds per atom, as each candidate counts (`cost`). Its error
falls as n^-p with the steps n of a run, so at PaiNN's time for N steps the expected ratio of errors is
e_c(N) / e_painn(N) x r^p. p is that between the candidate's own runs of N and 2 N steps (`moments` and `moments*2`)
where both were done, else PaiNN's.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoders.common import Candidate, Cost, LinearFilter
from encoders.nequip import NequIP
from encoders.painn import (
    AttentivePaiNN,
    BlockPaiNN,
    GatedPaiNN,
    MomentPaiNN,
    NarrowMomentPaiNN,
    NetworkPaiNN,
    PlainPaiNN,
)
from encoders.tensornet import NetworkTensorNet, TensorNet
from real_data import DRAWN, configuration

from atomsieve.models import registry
from atomsieve.models.config import ModelConfig
from atomsieve.models.encoder import find_encoder_class
from atomsieve.models.quadrupoles.encoder import QuadrupoleOptions, Quadrupoles

SOURCES = ("hea_nbmotaw", "tio2_qe", "qm22_b3lyp", "mptrj")
CANDIDATES: tuple[type[Candidate], ...] = (
    PlainPaiNN,
    GatedPaiNN,
    MomentPaiNN,
    NarrowMomentPaiNN,
    BlockPaiNN,
    TensorNet,
    NequIP,
    AttentivePaiNN,
    NetworkPaiNN,
    NetworkTensorNet,
)
MODEL = {"hidden": 64, "layers": 2, "cutoff": 4.5, "typical_neighbors": 25.0}
BASE = "painn"


def register() -> None:
    """Make the candidates known to configurations in this process."""
    for plugin in CANDIDATES:
        registry._find_built_in()[plugin.name] = plugin


def parse_run(name: str) -> tuple[str, int]:
    """Return the encoder of a run and how often the steps are repeated: `moments*2` is probe_moments, twice as long."""
    short, _, times = name.partition("*")
    candidates = {c.name for c in CANDIDATES}
    return f"probe_{short}" if short != BASE and f"probe_{short}" in candidates else short, int(times or 1)


def build_config(data: Path, encoder: str, steps: int, atoms: int) -> Any:
    """Return the training configuration: that of `benchmarks/real_data.py` with four sources and one member."""
    from atomsieve.train.config import parse_config

    raw = configuration(data, 1.0, 1)
    weights = {name: weight for weight, names in DRAWN.items() for name in names}
    raw["data"] = [
        {"path": str(data / "train.bp"), "sources": [name], "weight": weights[name]}
        | ({"split_by": "structure"} if name == "hea_nbmotaw" else {})
        for name in SOURCES
    ]
    raw["data"].append({"path": str(data / "test.bp"), "sources": list(SOURCES), "use": "test"})
    raw["model"] = {**MODEL, "encoder": encoder}
    raw["ensemble"] = {"members": 1}
    raw["batch"]["atoms"] = atoms
    raw["budget"] = {"steps": steps, "eval_every": max(steps // 2, 1), "checkpoint_minutes": 1e6}
    return parse_config(raw)


def train(data: Path, encoder: str, steps: int, atoms: int) -> dict[str, Any]:
    """Train a candidate; return its errors by steps, its processor time, and the sizes of the batches."""
    from atomsieve.structures import open_structures
    from atomsieve.train.data.split import TEST
    from atomsieve.train.distributed import ProcessGroup
    from atomsieve.train.log import RunLog
    from atomsieve.train.loop import Run
    from atomsieve.train.metrics import compute_validation_metrics
    from atomsieve.train.prepare import prepare
    from atomsieve.train.run import _ensemble
    from atomsieve.train.validation import validate

    config = build_config(data, encoder, steps, atoms)
    torch.manual_seed(config.ensemble.seed)
    group = ProcessGroup(0, 1, torch.device("cpu"))
    rows: list[dict[str, Any]] = []
    spent = 0.0

    class Probe(Run):
        """A run that keeps nothing but its errors on the test files."""

        def save(self) -> None:
            """Write nothing."""

        def step(self, batch: Any, stop: bool, part: float) -> bool:
            """Do one step and count its processor time."""
            nonlocal spent
            began = time.process_time()
            stopped = super().step(batch, stop, part)
            spent += time.process_time() - began
            return stopped

        def validate(self) -> bool:
            """Measure the errors of the running mean."""
            if self._validated == self.progress.step or self.mean is None:
                return False
            self._validated = self.progress.step
            material, rules = self.material, self.config.batch
            self.mean.swap(self.ensemble)
            result = validate(
                self.ensemble, material.store, material.labels, material.val, material.sizes, rules, self.group
            )
            self.mean.swap(self.ensemble)
            errors = compute_validation_metrics(result, material.store.catalog.sources)
            rows.append(
                {
                    "step": self.progress.step,
                    "processor": spent,
                    "heads": {n: {k: r.get(k) for k in ("energy_mae", "force_mae")} for n, r in errors.items()},
                }
            )
            print(encoder, self.progress.step, f"{spent:.1f} s", _format_errors(rows[-1]), flush=True)
            return False

    readers = [open_structures(item.path) for item in config.data]
    try:
        prepared = prepare(config, readers)
        material = replace(prepared.material, val=np.flatnonzero(prepared.part == TEST))
        ensemble = _ensemble(config, prepared.heads, [config.ensemble.seed], group)
        run = Probe(
            ensemble, material, group, Path("no checkpoint"), RunLog(None), order_seed=config.ensemble.seed, hours=None
        )
        run.fit()
    finally:
        for reader in readers:
            reader.__exit__(None, None, None)
    parameters = sum(p.numel() for name, p in ensemble.named_parameters() if name.startswith("encoder"))
    per_atom = count_edges_per_atom(config, material)
    return {"encoder": encoder, "steps": steps, "rows": rows, "parameters": parameters, "edges_per_atom": per_atom}


def count_edges_per_atom(config: Any, material: Any) -> float:
    """Return edges per atom over batches as they are drawn."""
    from atomsieve.graphs import count_edges
    from atomsieve.train.data.sampler import Order

    catalog, train = material.store.catalog, material.train
    order = Order(
        train,
        catalog.head[train],
        catalog.n_atoms[train],
        catalog.weights,
        config.batch,
        material.sizes,
        config.ensemble.seed,
        material.store.block,
    )
    drawn = np.concatenate(order.epoch(0)[:100])
    return float(count_edges(material.store.fetch(drawn), config.model.cutoff).sum() / catalog.n_atoms[drawn].sum())


def _format_errors(row: dict[str, Any]) -> str:
    return "  ".join(f"{n} {r['energy_mae']:.1f}/{r['force_mae']:.0f}" for n, r in row["heads"].items())


def count_quadrupoles(config: ModelConfig) -> Cost:
    """Return the counted multiply-adds of the package's encoder `quadrupoles` with one block."""
    f, g = config.hidden, config.options_of(QuadrupoleOptions).channels
    painn = PlainPaiNN.cost(config)
    products = f * g + 3 * f * g + (f + 2 * g) * f + f * f + 45 * g
    edge = LinearFilter.cost(config, g) + 6 * g
    return Cost(painn.edge + edge, painn.atom + products + 25 * g, painn.products + products)


def find_cost(encoder: str) -> Cost:
    """Return the counted cost of a candidate at the probe's size."""
    config = ModelConfig(encoder=encoder, **MODEL)
    if encoder == Quadrupoles.name:
        return count_quadrupoles(config)
    plugin = PlainPaiNN if encoder == BASE else find_encoder_class(encoder)
    assert issubclass(plugin, Candidate)
    return plugin.cost(config)


def check(names: list[str]) -> None:
    """Run the kit's checks of encoders, compare PaiNN's plain form with the package's, and check counted products."""
    from torch.utils.flop_counter import FlopCounterMode

    from atomsieve import testing
    from atomsieve.graphs.neighbors import build_graph
    from atomsieve.models.encoder import Wanted, build_encoder
    from atomsieve.models.layers import Seeds
    from atomsieve.testing import encoders as kit

    checks = (
        kit.check_symmetries,
        kit.check_forces,
        kit.check_virial,
        kit.check_smooth_cutoff,
        kit.check_batch_independence,
        kit.check_members,
        kit.check_lone_atoms,
        kit.check_double_backward,
        kit.check_charge_and_spin,
    )
    batch = testing.cells.crystals(3, seed=1)
    for name in names:
        encoder, _ = parse_run(name)
        for one in checks:
            charged = one is kit.check_charge_and_spin
            one(kit.build_untrained(encoder, **({"charge_spin": True} if charged else {})))
        config = ModelConfig(encoder=encoder, **MODEL)
        graph = build_graph(batch, config.cutoff)
        built = build_encoder(config, Seeds([0]))
        geometry = built.geometry(graph.vec, 1, differentiable=False)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            built(graph, geometry, None, Wanted(False, False, False))
        counted = counter.get_total_flops() / 2
        cost = find_cost(encoder)
        print(
            f"{name}: checks pass; per edge {cost.edge:.0f}, per atom {cost.atom:.0f}; matrix products counted here "
            f"{counted / graph.n_atoms:.0f} per atom with those of {graph.n_edges / graph.n_atoms:.1f} edges, "
            f"stated {cost.products:.0f} without",
            flush=True,
        )


def compare_errors(one: dict[str, Any], two: dict[str, Any], what: str) -> float:
    """Return the geometric mean over sources of the ratios of two runs' errors at their ends."""
    first, second = (run["rows"][-1]["heads"] for run in (one, two))
    return math.exp(sum(math.log(first[n][what] / second[n][what]) for n in SOURCES) / len(SOURCES))


def table(work: Path) -> None:
    """Print the table of all results in `work`."""
    found = {p.stem: json.loads(p.read_text()) for p in sorted(work.glob("*.json"))}

    def fit_power(name: str) -> float | None:
        once, twice = found.get(name), found.get(f"{name}*2")
        return None if once is None or twice is None else -math.log2(compare_errors(twice, once, "force_mae"))

    own, edges = find_cost(BASE), found[BASE]["edges_per_atom"]
    base_power = fit_power(BASE)
    print(
        f"{edges:.1f} edges per atom\n\n| run | steps | parameters | per edge | per atom | r | p | CPU s, plain | "
        + " | ".join(SOURCES)
        + " | energy ratio | force ratio | at equal time |"
    )
    print("|" + " --- |" * (8 + len(SOURCES) + 3))
    for name, one in sorted(found.items(), key=lambda item: item[1]["steps"]):
        base = next((r for n, r in found.items() if n.split("*")[0] == BASE and r["steps"] == one["steps"]), None)
        if base is None:
            continue
        cost, end = find_cost(one["encoder"]), one["rows"][-1]
        ratio = (edges * cost.edge + cost.atom) / (edges * own.edge + own.atom)
        power = fit_power(name.split("*")[0]) or base_power or 0.3
        force = compare_errors(one, base, "force_mae")
        print(
            f"| {name} | {one['steps']:,} | {one['parameters']:,} | {cost.edge:.0f} | {cost.atom:.0f} | {ratio:.2f} "
            f"| {power:.2f} | {end['processor']:.0f} | "
            + " | ".join(f"{r['energy_mae']:.1f}/{r['force_mae']:.0f}" for r in (end["heads"][n] for n in SOURCES))
            + f" | {compare_errors(one, base, 'energy_mae'):.2f} | {force:.2f} | {force * ratio**power:.2f} |"
        )


def compare_speed(names: list[str], structures: int = 16, members: int = 4, repeats: int = 9) -> None:
    """Print processor times of the first encoder and the others, in turns: 4 members, 20-atom crystals, one head."""
    from speed.ensemble import crystals, learn, predict

    from atomsieve.graphs import build_graph
    from atomsieve.models import Ensemble, HeadSpec

    graph = build_graph(crystals(structures, 20), MODEL["cutoff"])
    head = HeadSpec(name="any", level_of_theory="", references={}, scale=1.0, elements={})
    ensembles = {n: Ensemble(ModelConfig(encoder=parse_run(n)[0], **MODEL), [head], range(members)) for n in names}
    for task in (predict, learn):
        times: dict[str, list[float]] = {n: [] for n in names}
        for turn in range(repeats + 1):
            for name, one in ensembles.items():
                began = time.process_time()
                task([one], graph)
                if turn:
                    times[name].append(time.process_time() - began)
        for name, found in times.items():
            ratio = np.median([a / b for a, b in zip(found, times[names[0]], strict=True)])
            print(f"{task.__name__} {name}: {1e3 * np.median(found):.1f} ms of the processor, ratio {ratio:.2f}")


def main() -> None:
    """Run the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("real_data"), help="folder with train.bp and test.bp")
    parser.add_argument("--work", type=Path, default=Path("probe"), help="results, one file for each run")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--atoms", type=int, default=96, help="atoms in a batch")
    parser.add_argument("--runs", nargs="+", help="candidates, NAME or NAME*2 for a run twice as long; default: all")
    parser.add_argument("--stage", choices=("all", "check", "speed", "train", "table"), default="all")
    options = parser.parse_args()
    register()
    names = options.runs or [BASE, *(c.name.removeprefix("probe_") for c in CANDIDATES[1:]), f"{BASE}*2"]
    options.work.mkdir(parents=True, exist_ok=True)
    if options.stage == "check":
        check(names)
    if options.stage == "speed":
        compare_speed(names)
    if options.stage in ("all", "train"):
        for name in names:
            path = options.work / f"{name}.json"
            if not path.exists():
                encoder, times = parse_run(name)
                found = train(options.data.resolve(), encoder, times * options.steps, options.atoms)
                path.write_text(json.dumps(found, indent=1))
    if options.stage in ("all", "table"):
        table(options.work)


if __name__ == "__main__":
    main()
