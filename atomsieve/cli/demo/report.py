"""The report of the demo: held-out errors, best rows with true energies, how well the uncertainty ranks errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table

    from atomsieve.cli.demo.plan import Demo

BEST = 10
SEARCHED = 1000
"""Best rows among which the best of each formula is looked for."""
SAMPLE = 500
"""Candidates, drawn at random, whose true energies are computed for comparison."""


def compute_true_energies(demo: Demo, positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the EMT energies [S] (eV) of the candidates at `positions`: the demo can afford to know the truth."""
    from ase.calculators.emt import EMT

    from atomsieve.cli.demo.plan import progress_bar
    from atomsieve.structures.dataset.open import open_structures

    energies = np.empty(len(positions))
    with (
        open_structures(demo.candidates) as reader,
        progress_bar(demo.console, "true energies of some candidates", len(positions)) as advance,
    ):
        for k, position in enumerate(positions):
            (atoms,) = reader.read(int(position), int(position) + 1).to_ase()
            energies[k] = EMT().get_potential_energy(atoms)
            advance(1)
    return energies


def compare_with_truth(rows: NDArray[Any], truth: NDArray[np.float64]) -> dict[str, Any]:
    """Return how rows of a screening compare with the true energies [S] (eV).

    error : mean |error|, eV/atom; rank : Spearman correlation of predicted and true energies per atom; spread :
    Spearman correlation of the members' spread and |error|, per atom; within : share of |error| within the calibrated
    90 % interval, NaN if the head is uncalibrated.
    """
    from scipy.stats import spearmanr

    natoms = rows["natoms"]
    error = np.abs(rows["energy"] - truth) / natoms
    interval = rows["interval_energy"] / natoms
    return {
        "rows": len(rows),
        "error": float(error.mean()),
        "rank": float(spearmanr(rows["energy_per_atom"], truth / natoms).statistic),
        "spread": float(spearmanr(rows["energy_std"] / natoms, error).statistic),
        "within": float(np.mean(error <= interval)) if np.isfinite(interval).all() else float("nan"),
    }


def first_of_each(names: list[str]) -> NDArray[np.int64]:
    """Return where each name occurs first, in order."""
    return np.sort(np.unique(names, return_index=True)[1]).astype(np.int64)


def read_held_out(path: Path) -> dict[str, dict[str, Any]]:
    """Return the metrics per head on the held-out structures, as training wrote them."""
    try:
        return dict(json.loads(path.read_text())["test"])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} holds no held-out errors ({error!r}); run the demo with --overwrite") from error


def format_held_out_table(metrics: dict[str, dict[str, Any]]) -> Table:
    """Return the held-out errors per head, with baselines that need no network."""
    from rich.table import Table

    table = Table(
        title="Mean errors on held-out structures, beside what is had without a network (element references "
        "alone; zero forces); rho: Spearman correlation of uncertainty and error",
        title_justify="left",
    )
    table.add_column("head", no_wrap=True)
    for heading in ("structures", "energy\nmeV/atom", "refs\nalone", "force\nmeV/Å", "zero\nforces"):
        table.add_column(heading, justify="right")
    for heading in ("rho\nenergy", "rho\nforce"):
        table.add_column(heading, justify="right")
    keys = ("energy_mae", "energy_baseline", "force_mae", "force_baseline", "spread_error_energy", "spread_error_force")
    for head, row in metrics.items():
        shown = [f"{row[k]:.2f}" if k.startswith("spread") else f"{row[k]:.1f}" for k in keys if row.get(k) is not None]
        table.add_row(head, f"{row['structures']:,}", *shown)
    return table


def format_best_table(rows: NDArray[Any], formulas: dict[int, str], truth: NDArray[np.float64]) -> Table:
    """Return the best rows with their true energies; EMT counts from each element's fcc crystal."""
    from rich.table import Table

    table = Table(title="The most stable candidate of each formula, and its true (EMT) energy", title_justify="left")
    per_atom = (f"{what}\neV/atom" for what in ("predicted", "uncertainty", "true"))
    for heading in ("rank", "formula", *per_atom, "max force\neV/Å"):
        table.add_column(heading, justify="left" if heading == "formula" else "right")
    for rank, (row, energy) in enumerate(zip(rows, truth, strict=True), start=1):
        n = row["natoms"]
        sigma = row["sigma_energy"] if np.isfinite(row["sigma_energy"]) else row["energy_std"]
        table.add_row(
            str(rank),
            formulas[int(row["position"])],
            f"{row['energy_per_atom']:.4f}",
            f"{sigma / n:.4f}",
            f"{energy / n:.4f}",
            f"{row['max_force']:.2f}",
        )
    return table


def show_report(demo: Demo) -> None:
    """Print the last page and write it as report.json."""
    from atomsieve.screen.results.formulas import read_formulas
    from atomsieve.screen.results.record import open_results
    from atomsieve.screen.selection.best import best_rows

    metrics = read_held_out(demo.training / "metrics.json")
    results = open_results(demo.results)
    best = best_rows(results, SEARCHED, "energy_per_atom")
    formulas = read_formulas(results, best)
    best = best[first_of_each([formulas[int(p)] for p in best["position"]])[:BEST]]
    rows = np.asarray(results.rows())
    good = np.flatnonzero(rows["status"] == 0)
    rng = np.random.default_rng(demo.plan.seed)
    sample = rows[np.sort(rng.choice(good, size=min(SAMPLE, len(good)), replace=False))]
    truth = compute_true_energies(demo, np.concatenate([best["position"], sample["position"]]))
    found = compare_with_truth(sample, truth[len(best) :])

    demo.console.print(format_held_out_table(metrics))
    demo.console.print(format_best_table(best, formulas, truth[: len(best)]))
    within = (
        "; the head is uncalibrated"
        if np.isnan(found["within"])
        else (f"; {found['within']:.0%} of the errors are within the 90 % interval")
    )
    demo.say(
        f"Of {found['rows']:,} candidates drawn at random: mean error {1e3 * found['error']:.1f} meV/atom; Spearman "
        f"correlation of predicted and true energies {found['rank']:.3f}, of uncertainty and error "
        f"{found['spread']:.2f}{within}."
    )
    report = {
        "held_out": metrics,
        "sample": found,
        "best": [
            {
                "position": int(row["position"]),
                "formula": formulas[int(row["position"])],
                "energy_per_atom": float(row["energy_per_atom"]),
                "true_energy_per_atom": float(energy / row["natoms"]),
            }
            for row, energy in zip(best, truth, strict=False)
        ],
    }
    (demo.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    _show_files(demo)


def _show_files(demo: Demo) -> None:
    from rich.table import Table

    table = Table(title="Where it lies", title_justify="left", show_header=False)
    for path, what in (
        (demo.out / "labels", "labelled structures as extxyz, one file per level of theory"),
        (demo.dataset("train"), "the same as a dataset folder; labelled-test.bp holds those kept from training"),
        (demo.out / "train.yaml", "the training configuration"),
        (demo.training, "its logs, metrics.md and parity.png"),
        (demo.gfm, "the ensemble: weights, heads, references, calibration; safe to hand to others"),
        (demo.candidates, "the candidates"),
        (demo.results / "top.csv", "the best rows; `screen top`, `screen export` read all rows"),
        (demo.out / "report.json", "the numbers of this page"),
    ):
        table.add_row(str(path), what)
    demo.console.print(table)
