"""`atomsieve demo`: the whole path on labels made on the spot, each stage by the command that a user would type."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from atomsieve.cli.common import IN_OUT, WORK, OverwriteOption, SeedOption, console
from atomsieve.cli.demo.plan import MEMBERS, Demo, DemoPlan, find_mpirun, full_plan, progress_bar, quick_plan
from atomsieve.errors import UsageError
from atomsieve.runs.environment import count_cores
from atomsieve.runs.output_files import atomic_draft, atomic_folder

# -- stages --------------------------------------------------------------------------------------------------------


def make_labels(demo: Demo) -> None:
    """Make the labels of every source and write them as extxyz, the form in which labels usually come."""
    from ase.io import write

    from atomsieve.cli.demo.labels import LABEL_SOURCES, label_groups

    demo.show_command("atomsieve", "demo", "--out", str(demo.out), *demo.options, "--only", "labels")
    for name, groups in demo.plan.groups.items():
        path = demo.labels_file(name)
        if path.exists():
            demo.say(f"{path} is there already")
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        frames: list[Any] = []
        source = LABEL_SOURCES[name]
        with progress_bar(demo.console, f"{name} labels", groups * source.group_size) as advance:
            for group in label_groups(name, groups, seed=demo.plan.seed, workers=_count_workers()):
                frames += group
                advance(len(group))
        with atomic_draft(path, durable=False) as draft:
            write(draft, frames, format="extxyz")
        demo.say(f"{path}: {len(frames):,} structures, {source.level_of_theory}")


def convert(demo: Demo) -> None:
    """Turn the labels into dataset folders: a training and a test part, with both sources in each."""
    from atomsieve.cli.demo.labels import LABEL_SOURCES

    parts = [demo.dataset(part) for part in ("train", "test")]
    if all(p.exists() for p in parts):
        demo.say(f"{parts[0]} and {parts[1].name} are there already")
        return
    levels = [w for n in demo.plan.groups for w in ("--level-of-theory", f"{n}={LABEL_SOURCES[n].level_of_theory}")]
    demo.command(
        "atomsieve",
        "data",
        "convert",
        *(f"{name}={demo.labels_file(name)}" for name in demo.plan.groups),
        demo.out / "labelled.bp",
        *levels,
        "--split",
        "train=0.9,test=0.1",
        "--split-by",
        "group:group",
        "--seed",
        str(demo.plan.seed),
        "--overwrite",
    )


def train(demo: Demo) -> None:
    """Train the ensemble by `train.yaml` in the folder of the demo."""
    config = demo.out / "train.yaml"
    ranks = min(demo.ranks, MEMBERS)
    config.write_text(_train_config(demo.plan, ranks if find_mpirun() else 1))
    if demo.gfm.exists():
        demo.say(f"{demo.gfm} is there already")
        return
    demo.command("atomsieve", "train", config, ranks=ranks)
    with atomic_folder(demo.gfm) as draft:
        shutil.copytree(demo.training / "gfm", draft, dirs_exist_ok=True)
    demo.say(f"The ensemble is copied from {demo.training / 'gfm'} to {demo.gfm}.")


def _train_config(plan: DemoPlan, ranks: int) -> str:
    # Members dealt to the ranks exchange nothing; in one process they share geometry.
    mode = "spread" if ranks > 1 else "together"
    return f"""\
# Four networks, two heads. `atomsieve train init` writes an example with every key.
data:
  - {{path: labelled-train.bp}}
  - {{path: labelled-test.bp, use: test}}
output: training
default_head: emt
model: {{hidden: {plan.hidden}, layers: {plan.layers}, cutoff: {plan.cutoff}, repulsion: zbl}}
ensemble: {{members: {MEMBERS}, seed: {plan.seed}, mode: {mode}}}
split: {{train: 0.83, val: 0.05, test: 0.0, calibration: 0.12}}
optimizer: {{kind: muon}}
budget: {{epochs: {plan.epochs}}}
device: cpu
"""


def generate(demo: Demo) -> None:
    """Generate candidates: metals put into crystal prototypes, strained and rattled."""
    from ase.io import write

    from atomsieve.cli.demo.labels import METALS, prototype

    if demo.candidates.exists():
        demo.say(f"{demo.candidates} is there already")
        return
    prototypes = demo.out / "prototypes.extxyz"
    crystals = [prototype(k, ["Cu", "Au"], a) for k in ("L1_2", "L1_0", "D0_22", "B2") for a in (3.85, 4.0, 4.15)]
    write(prototypes, crystals, format="extxyz")
    demo.command(
        "atomsieve",
        "data",
        "generate",
        "substitute",
        demo.candidates,
        "--prototypes",
        prototypes,
        "--elements",
        ",".join(METALS),
        "--by",
        "sites",
        "--rattle",
        "0.03",
        "--strain",
        "0.03",
        "-n",
        str(demo.plan.candidates),
        "--seed",
        str(demo.plan.seed),
    )


def screen(demo: Demo) -> None:
    """Screen the candidates on several ranks; the lowest energies per atom come first."""
    demo.command(
        "screen",
        "run",
        demo.candidates,
        "--ensemble",
        demo.gfm,
        "--out",
        demo.results,
        "--head",
        "emt",
        "--top",
        "1000",
        "--by",
        "energy_per_atom",
        ranks=demo.ranks,
    )


def report(demo: Demo) -> None:
    """Show the best rows, the held-out errors and how well the uncertainty ranks the errors."""
    from atomsieve.cli.demo.report import show_report

    show_report(demo)


STAGES: dict[str, tuple[str, Callable[[Demo], None]]] = {
    "labels": ("Label structures", make_labels),
    "convert": ("Convert them", convert),
    "train": ("Train four networks", train),
    "candidates": ("Generate candidates", generate),
    "screen": ("Screen them", screen),
    "report": ("What came out", report),
}
"""The stages in order: name, heading, function."""


# -- the command ---------------------------------------------------------------------------------------------------


def _count_workers() -> int:
    return max(1, min(8, count_cores()))


def _print_activation_hint(demo: Demo) -> None:
    """Print how to activate the environment if the shell would not find the commands that the stages show."""
    beside = Path(sys.executable).with_name("atomsieve")
    if beside.exists() and shutil.which("atomsieve") != str(beside):
        activate = beside.with_name("activate")
        demo.say(f"To type the commands below yourself: source {os.path.relpath(activate)}")


def _claim_folder(out: Path, plan: DemoPlan, overwrite: bool) -> None:
    """Make the folder this demo's own, or make sure that it is."""
    note = out / "demo.json"
    if overwrite and note.exists():
        shutil.rmtree(out)
    wanted = asdict(plan)
    if note.exists():
        found = json.loads(note.read_text())
        changed = [f"{k} {found.get(k)} (now {wanted[k]})" for k in wanted if found.get(k) != wanted[k]]
        if changed:
            raise UsageError(f"{out} holds a demo with {', '.join(changed)}; choose another --out, or --overwrite")
        return
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty and holds no demo; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(wanted, indent=1) + "\n")


def app(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where everything goes.", rich_help_panel=IN_OUT)] = Path(
        "demo"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer labels, smaller networks, 2,000 candidates.", rich_help_panel=WORK)
    ] = False,
    seed: SeedOption = 0,
    ranks: Annotated[int, typer.Option("--ranks", min=1, help="MPI ranks that screen.", rich_help_panel=WORK)] = 2,
    candidates: Annotated[
        int | None,
        typer.Option(
            "--candidates",
            min=1,
            help="Structures to screen. [default: 20000]",
            rich_help_panel=WORK,
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option("--only", help=f"Run one stage: {', '.join(STAGES)}.", rich_help_panel=WORK, show_default=False),
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """See it all work: make labels, train an ensemble, screen candidates, rank them. Needs no data and no network.

    Stages whose results are there are not repeated: run the same command again after an interruption.
    """
    from rich.text import Text

    from atomsieve.errors import unknown

    if only is not None and only not in STAGES:
        raise unknown("stage", only, STAGES)
    plan = (quick_plan if quick else full_plan)(seed, candidates or (2000 if quick else 20_000))
    _claim_folder(out, plan, overwrite)
    options = [*(["--quick"] if quick else []), *(["--seed", str(seed)] if seed else [])]
    options += ["--candidates", str(candidates)] if candidates else []
    demo = Demo(out, plan, ranks, console(), tuple(options))
    _print_activation_hint(demo)
    begun = time.perf_counter()
    for number, (name, (heading, stage)) in enumerate(STAGES.items(), start=1):
        if only in (None, name):
            demo.console.rule(Text(f"{number}/{len(STAGES)}  {heading}", "bold"), align="left")
            started = time.perf_counter()
            stage(demo)
            demo.console.print(f"{time.perf_counter() - started:.0f} s", style="dim", highlight=False)
    if only is None:
        demo.say(f"All of it took {time.perf_counter() - begun:.0f} s. Everything lies under {out}/.")
