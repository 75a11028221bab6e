"""Benchmark of files of structures: reading, conversion and writing beside ASE, on crystals of 20 atoms with labels.

    python benchmarks/speed/reading.py [--structures 20000] [--formats extxyz,...] [--rounds 3] [--processes 2]

For each format: `read` is the reader alone, up to flat arrays; `convert` is a whole conversion into a dataset folder,
without the start of the program; `write` is the export of a batch. Beside them is what ASE does for the same file, on
the first --ase-structures of it. Times are CPU times of this process and all its threads, of one core each, the least
of --rounds; megabytes are those of the plain file. All ways are timed in turns.

Then, beside what ASE does for the same: rows of databases (aselmdb, db), and folders of --files files of one structure
each (CIF, POSCAR; for these `ASE` guesses the format of each file as `ase.io.read` does, and `ASE, told` is told it).

Then .bp and .parquet are converted, with labels and without. `--processes N` compares N processes with one, in turns,
by wall time (on an idle machine) and by the CPU time of all, whose ratio bounds what an idle machine gives.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ATOMS = 20


def make_crystals(count: int, seed: int = 0) -> list[object]:
    """Return ASE atoms: periodic crystals of 20 atoms with energy, forces and stress, an id and two texts."""
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    rng = np.random.default_rng(seed)
    found: list[object] = []
    for k in range(count):
        cell = np.eye(3) * 7 + rng.normal(0, 0.2, (3, 3))
        numbers = rng.choice([3, 8, 22, 26, 29], ATOMS)
        atoms = Atoms(numbers, scaled_positions=rng.random((ATOMS, 3)), cell=cell, pbc=True)
        atoms.info.update(sid=f"crystal-{k:07d}", config="random")
        stress = rng.normal(0, 0.01, 6)
        atoms.calc = SinglePointCalculator(
            atoms, energy=rng.normal(-100, 5), forces=rng.normal(0, 1, (ATOMS, 3)), stress=stress
        )
        found.append(atoms)
    return found


def read_extxyz(path: Path, count: int) -> Callable[[], int]:
    """Return a function that reads structures with ASE."""

    def run() -> int:
        from ase.io import iread

        return sum(1 for _ in iread(path, index=slice(0, count), format="extxyz"))

    return run


@dataclass(frozen=True)
class Case:
    """One format: the ending of its files, and how ASE reads and writes them."""

    ending: str
    ase_read: Callable[[Path, int], Callable[[], int]]
    ase_format: str


CASES = {"extxyz": Case(".extxyz", read_extxyz, "extxyz")}
"""Formats by name: to add one, say how ASE reads a number of structures of it."""


def measure(path: Path, case: Case, options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, int, float]]:
    """Yield (what, structures, CPU seconds): the least of all rounds."""
    from ase.io import write

    from atomsieve.structures import SourceInfo, StructureBatch
    from atomsieve.structures.conversion.convert import ConvertOptions, Input, convert
    from atomsieve.structures.formats import ReadRequest, WriteOptions, find_format, open_sink, read_blocks

    kind = find_format(path)
    assert kind is not None
    images = make_crystals(options.ase_structures)
    batch = StructureBatch.from_ase(images)  # type: ignore[arg-type]
    source = SourceInfo("crystals", "none")

    def our_read() -> int:
        return sum(len(block) for block in read_blocks(ReadRequest(path), kind))

    def our_convert() -> int:
        return convert([Input(path, source)], folder / "o.bp", ConvertOptions(overwrite=True), workers=1).written

    def our_write() -> int:
        with open_sink(folder / f"ours{case.ending}", WriteOptions(overwrite=True)) as sink:
            for _ in range(5):
                sink.write(batch)
        return 5 * len(batch)

    def ase_write() -> int:
        write(folder / f"ase{case.ending}", images, format=case.ase_format)  # type: ignore[arg-type]
        return len(images)

    calls: dict[str, Callable[[], int]] = {
        "ASE, read": case.ase_read(path, options.ase_structures),
        "read": our_read,
        "convert": our_convert,
        "ASE, write": ase_write,
        "write": our_write,
    }
    least: dict[str, float] = {}
    counts: dict[str, int] = {}
    for _ in range(options.rounds):
        for name, call in calls.items():
            began = time.process_time()
            counts[name] = call()
            least[name] = min(least.get(name, np.inf), time.process_time() - began)
    for name in calls:
        yield name, counts[name], least[name]


def write_database(path: Path, count: int) -> None:
    """Write crystals as rows of a database of ASE."""
    from ase.db import connect

    with connect(path) as database:
        for atoms in make_crystals(count):
            database.write(atoms, data=dict(atoms.info))  # type: ignore[attr-defined]


def write_folder(path: Path, form: str, ending: str, count: int) -> None:
    """Write crystals as one file each."""
    from ase.io import write

    path.mkdir()
    some = make_crystals(min(count, 500))
    for k in range(count):
        write(path / f"{k:06d}{ending}", some[k % len(some)], format=form)  # type: ignore[arg-type]


def measure_others(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, float, dict[str, float]]]:
    """Yield (what, structures converted per CPU second, how many times that is what ASE reads)."""
    from ase.db import connect
    from ase.io import read

    from atomsieve.structures import SourceInfo
    from atomsieve.structures.conversion.convert import ConvertOptions, Input, convert
    from atomsieve.structures.formats import ReadRequest, read_blocks

    def convert_all(path: Path) -> Callable[[], int]:
        given = [Input(path, SourceInfo("crystals", "none"))]
        return lambda: convert(given, folder / "o.bp", ConvertOptions(overwrite=True), workers=1).written

    def compare(calls: dict[str, Callable[[], int]], other: str) -> tuple[float, dict[str, float]]:
        rates = dict.fromkeys(calls, 0.0)
        for _ in range(options.rounds):
            for name, call in calls.items():
                began = time.process_time()
                count = call()
                rates[name] = max(rates[name], count / (time.process_time() - began))
        own = rates["ours"]
        return own, {name: own / rate for name, rate in rates.items() if name.startswith(other)}

    for kind, ending in (("lmdb", ".aselmdb"), ("db", ".db")):
        path = folder / f"rows{ending}"
        write_database(path, options.files)
        select: dict[str, Callable[[], int]] = {"ASE": lambda path=path: sum(1 for _ in connect(path).select())}  # type: ignore[misc]
        reading: Callable[[], int] = lambda path=path, kind=kind: sum(  # type: ignore[misc] # noqa: E731
            len(block) for block in read_blocks(ReadRequest(path), kind)
        )
        yield f"{ending} read", *compare({"ours": reading, **select}, "ASE")
        yield f"{ending} > .bp", *compare({"ours": convert_all(path), **select}, "ASE")
    for form, ending in (("cif", ".cif"), ("vasp", ".vasp")):
        path = folder / form
        write_folder(path, form, ending, options.files)
        files = sorted(path.iterdir())[:200]
        yield (
            f"folder of {ending} > .bp",
            *compare(
                {
                    "ours": convert_all(path),
                    "ASE": lambda files=files: len([read(file) for file in files]),  # type: ignore[misc]
                    "ASE, told": lambda files=files, form=form: len([read(file, format=form) for file in files]),  # type: ignore[misc]
                },
                "ASE",
            ),
        )


def measure_datasets(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, float, float]]:
    """Yield (what, structures per CPU second, MB per CPU second) of converting .bp and .parquet into .bp."""
    from atomsieve.structures import SourceInfo, StructureBatch, open_structures, write_structures
    from atomsieve.structures.conversion.convert import ConvertOptions, Input, convert
    from atomsieve.structures.export import Subset, export

    some = StructureBatch.from_ase(make_crystals(1000))  # type: ignore[arg-type]
    whole = StructureBatch.concatenate([some] * max(options.structures // 1000, 1))
    bare = StructureBatch(whole.ptr, whole.numbers, whole.positions, whole.cell, whole.pbc, whole.id)
    source = SourceInfo("crystals", "none")
    for what, batch in (("labels", whole), ("no labels", bare)):
        sources = [source] if batch is whole else []
        write_structures(folder / "in.bp", batch, sources, overwrite=True)
        with open_structures(folder / "in.bp") as reader:
            export(reader, folder / "in.parquet", Subset(), overwrite=True)
        size = sum(array.nbytes for array in batch.present().values()) / len(batch)
        for name in ("in.bp", "in.parquet"):
            given = [Input(folder / name, source if sources and name != "in.bp" else None)]
            least = np.inf
            for _ in range(options.rounds):
                began = time.process_time()
                convert(given, folder / "o.bp", ConvertOptions(overwrite=True), workers=1)
                least = min(least, time.process_time() - began)
            rate = len(batch) / least
            yield f"{Path(name).suffix} > .bp, {what}", rate, rate * size / 1e6


def measure_processes(path: Path, options: argparse.Namespace, folder: Path) -> tuple[float, float]:
    """Return how many times faster N processes convert a file than one, by wall time and by all CPU time.

    The second is N times the CPU time of one process over that of all N: what a machine gives that does nothing else.
    """
    from atomsieve.structures import SourceInfo
    from atomsieve.structures.conversion.convert import ConvertOptions, Input, convert

    def spend() -> float:
        return sum(
            usage.ru_utime + usage.ru_stime
            for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
        )

    source = SourceInfo("crystals", "none")
    wall, cpu = dict[int, float](), dict[int, float]()
    for _ in range(options.rounds):
        for count in (1, options.processes):
            began, spent = time.perf_counter(), spend()
            convert([Input(path, source)], folder / "o.bp", ConvertOptions(overwrite=True), workers=count)
            wall[count] = min(wall.get(count, np.inf), time.perf_counter() - began)
            cpu[count] = min(cpu.get(count, np.inf), spend() - spent)
    many = options.processes
    return wall[1] / wall[many], many * cpu[1] / cpu[many]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", type=int, default=20_000)
    parser.add_argument("--ase-structures", type=int, default=500)
    parser.add_argument("--formats", default="extxyz")
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=0)
    options = parser.parse_args()
    from ase.io import write

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for form in options.formats.split(","):
            case = CASES[form]
            some = folder / f"some{case.ending}"
            write(some, make_crystals(1000), format=case.ase_format)  # type: ignore[arg-type]
            path = folder / f"crystals{case.ending}"
            with path.open("wb") as file:
                for _ in range(max(options.structures // 1000, 1)):
                    file.write(some.read_bytes())
            size = path.stat().st_size / (1000 * max(options.structures // 1000, 1))
            print(f"{form}: {path.stat().st_size / 1e6:.1f} MB, {size:.0f} bytes per structure")
            base = {}
            for what, count, seconds in measure(path, case, options, folder):
                rate = count / seconds
                base[what] = rate
                other = base.get("ASE, write" if what == "write" else "ASE, read", rate)
                print(f"  {what:12} {rate:10,.0f} structures/s {rate * size / 1e6:8.1f} MB/s {rate / other:8.1f} x ASE")
            if options.processes > 1:
                wall, cpu = measure_processes(path, options, folder)
                print(f"  {options.processes} processes: {wall:.2f} times one by wall time, {cpu:.2f} by CPU time")
        for what, rate, ratios in measure_others(options, folder):
            shown = ", ".join(f"{ratio:.1f} x {name}" for name, ratio in ratios.items())
            print(f"  {what:28} {rate:10,.0f} structures/s; {shown}")
        for what, rate, megabytes in measure_datasets(options, folder):
            print(f"  {what:28} {rate:10,.0f} structures/s {megabytes:8.1f} MB/s")


if __name__ == "__main__":
    main()
