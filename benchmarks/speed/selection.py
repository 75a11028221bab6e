"""What choosing rows costs: best rows, best of each group, Pareto front, over many rows in files; time and memory.

    python benchmarks/speed/selection.py --structures 2000000

Structures of two to six atoms of twelve elements and made-up results lie in files; each choice is made once, in a
process of its own, so that its peak of memory is its own too. Rows are read, not mapped, for the same reason.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from atomsieve.screen.results.columns import ROW, blank_rows
from atomsieve.screen.selection.groups import Grouping
from atomsieve.screen.selection.pareto import Front, parse_objectives
from atomsieve.screen.selection.select import BestOfGroups
from atomsieve.screen.selection.top_k import TopK
from atomsieve.structures import StructureBatch, StructureWriter, open_structures

ELEMENTS = np.array([3, 8, 12, 13, 14, 20, 22, 25, 26, 28, 29, 38])
PIECE = 16_384
CHOICES = ("top 1000", "top 1000 per formula", "top 1000 per chemsys", "all per chemsys", "front of 2", "front of 4")


def structures(n: int, rng: np.random.Generator) -> StructureBatch:
    """Return n structures in cubic cells."""
    counts = rng.integers(2, 7, n)
    ptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    cell = np.broadcast_to(4.0 * np.eye(3), (n, 3, 3)).copy()
    return StructureBatch(
        ptr,
        rng.choice(ELEMENTS, ptr[-1]).astype(np.uint8),
        4.0 * rng.random((ptr[-1], 3)),
        cell,
        np.ones((n, 3), bool),
        np.arange(n, dtype=np.int64),
    )


def make(place: Path, n: int) -> None:
    """Write input and rows."""
    rng = np.random.default_rng(0)
    rows = np.lib.format.open_memmap(place / "rows.npy", "w+", ROW, (n,))
    with StructureWriter(place / "input.bp") as out:
        for first in range(0, n, 200_000):
            stop = min(first + 200_000, n)
            batch = structures(stop - first, rng)
            out.append(batch)
            part = blank_rows(stop - first)
            part["position"] = part["id"] = np.arange(first, stop)
            part["natoms"] = batch.counts
            part["energy_per_atom"] = rng.normal(-3, 1, stop - first)
            for name in ("energy_std", "max_force", "distance"):
                part[name] = np.exp(rng.normal(size=stop - first))
            rows[first:stop] = part
    rows.flush()


def peak() -> float:
    """Return the highest resident memory of this process so far, MB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def choose(place: Path, choice: str) -> tuple[int, float, float]:
    """Return rows chosen, seconds of one core, and the peak of memory (MB)."""
    mapped = np.load(place / "rows.npy", mmap_mode="r")
    total, start = len(mapped), mapped.offset
    with open_structures(place / "input.bp") as reader:
        reader.read_arrays(0, 1, ("numbers",))  # loads the library that reads
        before, begun = peak(), time.process_time()
        reducer: TopK | BestOfGroups | Front
        if choice == "top 1000":
            reducer = TopK(1000, "energy_per_atom")
        elif "per" in choice:
            grouping, most = Grouping(choice.split()[-1], reader), None if choice.startswith("all") else 1000
            reducer = BestOfGroups(most, 1, "energy_per_atom", lambda rows: grouping.keys(rows["position"]))
        else:
            names = ("energy_per_atom", "energy_std", "max_force", "distance")[: int(choice.split()[-1])]
            reducer = Front(parse_objectives(",".join(names)))
        for first in range(0, total, PIECE):
            at = start + first * ROW.itemsize
            reducer.add(np.fromfile(place / "rows.npy", ROW, min(PIECE, total - first), offset=at))
        n = len(reducer.rows())
    return n, time.process_time() - begun, peak() - before


def main() -> None:
    """Make the files, choose, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--structures", type=int, default=2_000_000)
    n = parser.parse_args().structures
    table = Table(title=f"{n:,} rows", title_justify="left", box=None)
    for heading in ("choice", "rows chosen", "CPU seconds", "million rows/s", "memory, MB"):
        table.add_column(heading, justify="left" if heading == "choice" else "right")
    with tempfile.TemporaryDirectory() as place:
        make(Path(place), n)
        for choice in CHOICES:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                chosen, seconds, memory = pool.apply(choose, (Path(place), choice))
            table.add_row(choice, f"{chosen:,}", f"{seconds:.1f}", f"{n / seconds / 1e6:.2f}", f"{memory:.0f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
