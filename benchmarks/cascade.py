"""Compare precision cascades with full runs in their better precision: the same best rows, rows recomputed, time.

    python benchmarks/cascade.py candidates.bp -e gfm [--top 100] [--by energy_per_atom] [--where "in_domain"]
        [--cascades bf16:fp32,fp32:fp64,fp32:fp32/1] [--repeat 1] [--safety 2]

`fp32:fp32/1` screens all with one member first. Times are processor time of computing alone (predicting, recomputing),
the least of the repeats, runs in turns. `same` says whether top.csv has the same rows in the same order, and how far a
number is off at most, relative to 1 + its size: batches differ, and with them the last bits of a sum.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.run import run_screen


def run(arguments: argparse.Namespace, out: Path, **options: Any) -> float:
    """Screen, and return the seconds of computing."""
    chosen = ScreenOptions(
        head=arguments.head,
        top=arguments.top,
        by=arguments.by,
        descending=arguments.descending,
        where=arguments.where,
        device=arguments.device,
        **options,
    )
    clock = time.perf_counter if arguments.device.startswith("cuda") else time.thread_time
    with mock.patch.object(time, "perf_counter", clock):  # others on the machine count little
        run_screen(arguments.candidates, arguments.ensemble, chosen, out=out, overwrite=True)
    stages = json.loads((out / "summary.json").read_text())["seconds_per_stage"]
    return sum(stages[name]["mean"] for name in ("predict", "recompute") if name in stages)


def table(out: Path) -> list[dict[str, str]]:
    """Return the rows of top.csv."""
    with open(out / "top.csv") as file:
        return list(csv.DictReader(file))


def difference(one: list[dict[str, str]], other: list[dict[str, str]]) -> float:
    """Return the largest difference of a number, relative to 1 + its size."""
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        for name in a:
            try:
                worst = max(worst, abs(float(a[name]) - float(b[name])) / (1 + abs(float(b[name]))))
            except ValueError:  # a name, or empty
                worst = worst if a[name] == b[name] else float("inf")
    return worst


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("candidates", type=Path)
    parser.add_argument("-e", "--ensemble", type=Path, required=True)
    parser.add_argument("--head")
    parser.add_argument("--top", type=int, default=100)
    parser.add_argument("--by", default="energy_per_atom")
    parser.add_argument("--descending", action="store_true")
    parser.add_argument("--where")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cascades", default="bf16:fp32,fp32:fp64,fp32:fp32/1")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--safety", type=float, default=2.0)
    arguments = parser.parse_args()

    cascades = [(text.partition("/")[0], text.partition("/")[2]) for text in arguments.cascades.split(",")]
    full: dict[str, list[float]] = {}
    taken: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(arguments.repeat):
            for precision in dict.fromkeys(pair.partition(":")[2] for pair, _ in cascades):
                full.setdefault(precision, []).append(run(arguments, folder / precision, precision=precision))
            for pair, members in cascades:
                options = {
                    "cascade": pair,
                    "cascade_safety": arguments.safety,
                    "cascade_members": int(members) if members else None,
                }
                out = folder / f"{pair}-{members}"
                taken.setdefault((pair, members), []).append(run(arguments, out, **options))
        print("| cascade | rows | recomputed | rounds | bound | largest error | s | full run, s | time | same |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        for pair, members in cascades:
            out, better = folder / f"{pair}-{members}", pair.partition(":")[2]
            report = json.loads((out / "cascade.json").read_text())["report"]
            ours, theirs = table(out), table(folder / better)
            same = [row["position"] for row in ours] == [row["position"] for row in theirs]
            off = f"yes, {difference(ours, theirs):.0e}" if same else "no"
            spent, alone = min(taken[pair, members]), min(full[better])
            bound, error = (report[key].get(arguments.by) or 0.0 for key in ("bounds", "largest_errors"))
            label = f"{pair}, {members} member(s) first" if members else pair
            share = report["recomputed"] / report["rows"]
            cells = (
                label,
                f"{report['rows']:,}",
                f"{share:.1%}",
                report["rounds"],
                f"{bound:.2g}",
                f"{error:.2g}",
                f"{spent:.1f}",
                f"{alone:.1f}",
                f"{spent / alone:.2f}",
                off,
            )
            print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
