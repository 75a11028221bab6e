"""Everything before the first step: read, clean and split the data, fit references, measure sizes of labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from atomsieve.errors import UsageError, unknown
from atomsieve.structures import StructureReader
from atomsieve.train.config import TrainConfig
from atomsieve.train.data.batches import Labels
from atomsieve.train.data.catalog import scan
from atomsieve.train.data.label_scales import HeadData, check_conditions, describe_heads, residual_energy
from atomsieve.train.data.outliers import Cleaning, remove_outliers
from atomsieve.train.data.sampler import Sizes, bootstrap_weights
from atomsieve.train.data.split import PARTS, TRAIN, VAL, assign_parts
from atomsieve.train.data.store import Store
from atomsieve.train.material import Material
from atomsieve.train.sharing import take_one_scale

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Prepared:
    """Data of a training: arrays for the loop, heads, the part of each structure [S], counts of structures left out."""

    material: Material
    heads: list[HeadData]
    part: np.ndarray
    cleaning: Cleaning


def prepare(config: TrainConfig, readers: Sequence[StructureReader], console: Console | None = None) -> Prepared:
    """Scan, clean and split the data, fit references and sizes, and print a summary on `console`."""
    with show_progress(console, "reading") as step:
        everything = scan(config.data, readers, step)
    cleaning = remove_outliers(everything, config.cleaning)
    catalog = everything.take(cleaning.keep)
    check_default_head(catalog.sources, config.default_head)
    if config.model.charge_spin:
        check_conditions(catalog)
    part = assign_parts(catalog, config.split, config.data)
    store = Store(catalog, readers, config.batch.in_memory * 1e9)
    heads = describe_heads(catalog, part == TRAIN, store.force_sums(part == TRAIN), config.loss)
    if config.ensemble.common_units:
        heads = take_one_scale(heads)
    residual = residual_energy(catalog, heads)
    labels = Labels.build(
        residual, catalog.has_forces, catalog.has_stress, catalog.n_atoms, heads, config.loss.energy_mean
    )
    sizes = Sizes(catalog.n_atoms, _edges(config, store) if config.batch.edges is not None else None)
    train_rows = np.flatnonzero(part == TRAIN)
    val_rows = _draw_evenly(np.flatnonzero(part == VAL), catalog.head, config.budget.eval_structures, config.split.seed)
    bootstrap = None
    if config.ensemble.bootstrap:
        bootstrap = bootstrap_weights(catalog.head[train_rows], member_seeds(config), len(catalog), train_rows)
    material = Material(config, store, labels, sizes, train_rows, val_rows, bootstrap)
    prepared = Prepared(material, heads, part, cleaning)
    if console is not None:
        print_summary(prepared, console)
    return prepared


def check_default_head(names: list[str], default: str | None) -> None:
    """Check that the default head is one of the sources; of several, one must be named.

    Raises
    ------
    UsageError
        naming the sources.
    """
    if default is None and len(names) > 1:
        raise UsageError(
            f"there are {len(names)} heads: state default_head, the one that screening uses if none is named; allowed: "
            f"{', '.join(names)}"
        )
    if default is not None and names and default not in names:
        raise unknown("default_head", default, names)


def _edges(config: TrainConfig, store: Store) -> np.ndarray:
    """Count the edges of every structure, for the edge budget."""
    from atomsieve.graphs import count_edges

    n = len(store.catalog)
    parts = [count_edges(store.fetch(np.arange(k, min(k + 5000, n))), config.model.cutoff) for k in range(0, n, 5000)]
    return np.concatenate(parts)


def _draw_evenly(rows: np.ndarray, head: np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    """Return at most `limit` of the rows, the same part of every head (at least 10 each), in order."""
    if limit is None or len(rows) <= limit:
        return rows
    rng, kept = np.random.default_rng([seed, 4]), []
    for h in np.unique(head[rows]):
        own = rows[head[rows] == h]
        n = min(len(own), max(10, round(len(own) * limit / len(rows))))
        kept.append(rng.permutation(own)[:n])
    return np.sort(np.concatenate(kept))


def summary(prepared: Prepared) -> dict[str, Any]:
    """Return numbers about the data per source: counts per part, structures left out, references, sizes."""
    catalog = prepared.material.store.catalog
    out: dict[str, Any] = {}
    for head, data in enumerate(prepared.heads):
        counts = np.bincount(prepared.part[catalog.head == head], minlength=len(PARTS))
        out[data.name] = {
            "level_of_theory": data.level_of_theory,
            **{name: int(n) for name, n in zip(PARTS, counts, strict=True)},
            "left_out": prepared.cleaning.counts[data.name],
            "energy_size": data.energy_size,
            "force_size": data.force_size,
            "output_scale": data.output_scale,
            "references": data.references.energies,
            "atoms": data.references.counts,
            **data.statistics,
        }
    return out


def print_summary(prepared: Prepared, console: Console) -> None:
    """Print a table of the sources and notes about structures that were left out."""
    from rich.table import Table

    table = Table(title="sources after cleaning", box=None, pad_edge=False)
    for heading in ("source", *PARTS, "left out", "elements", "|E| meV/atom", "|F| eV/A"):
        table.add_column(heading, justify="left" if heading == "source" else "right")
    notes = []
    for name, row in summary(prepared).items():
        left = sum(row["left_out"].values())
        force = row["force_norm_mean"]
        table.add_row(
            name,
            *(str(row[p]) for p in PARTS),
            str(left),
            str(len(row["references"])),
            f"{1e3 * row['residual_energy_per_atom_mae']:.1f}",
            "-" if force is None else f"{force:.3f}",
        )
        for reason, number in row["left_out"].items():
            notes.append(f"{name}: {number} left out: {reason}")
        notes.extend(_describe_poor_source(name, row))
        for combination in row["inseparable_elements"][:3]:
            notes.append(f"{name}: the data cannot separate {combination}; the mean energy per atom decides")
    console.print(table)
    for note in notes:
        console.print(f"  {note}", highlight=False, soft_wrap=True)


def _describe_poor_source(name: str, row: dict[str, Any]) -> list[str]:
    """Return notes about a source that teaches little."""
    notes = []
    if row["train_structures"] == 1:
        notes.append(f"{name}: a single structure to train on; its head learns little beyond the element references")
    if row["structures_with_forces"] and row["force_norm_mean"] == 0:
        notes.append(
            f"{name}: the forces of all {row['structures_with_forces']} training structures are zero and taught as "
            "such; leave them out of the file if they were never computed"
        )
    return notes


def member_seeds(config: TrainConfig) -> list[int]:
    """Return the seed of each member."""
    return [config.ensemble.seed + k for k in range(config.ensemble.members)]


@contextmanager
def show_progress(console: Console | None, what: str) -> Iterator[Any]:
    """Show a bar for calls `step(done, total)`; silent without a console."""
    if console is None:
        yield None
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True, disable=not console.is_interactive) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
