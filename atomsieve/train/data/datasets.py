"""The data of a training as datasets: files of other formats are converted once, beside the output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from atomsieve.errors import AtomSieveError, DataError, UsageError
from atomsieve.structures import open_structures
from atomsieve.structures.conversion.copy_record import DatasetCopy
from atomsieve.structures.conversion.ready import FOLDER, check_input, ensure_dataset, is_dataset
from atomsieve.structures.interface import StructureReader
from atomsieve.train.config import DataItem, TrainConfig
from atomsieve.train.distributed import ProcessGroup

if TYPE_CHECKING:
    from rich.console import Console


def ensure_datasets(config: TrainConfig, group: ProcessGroup, console: Console | None = None) -> list[DatasetCopy]:
    """Return the dataset of each data file, on every rank; the first rank converts, the others wait.

    Raises
    ------
    AtomSieveError
        if a file is not there, cannot be read, or its labels have no source.
    """
    found: list[DatasetCopy] = []
    problem: AtomSieveError | None = None
    if group.is_first:
        try:
            for item in config.data:
                check_input(item.path, None if item.convert is None else item.convert.format)
            found = [_ensure(item, config.output.absolute().parent / FOLDER, console) for item in config.data]
        except AtomSieveError as error:
            problem = error
    plain = [[str(copy.path), copy.content] for copy in found]
    said = None if problem is None else [str(problem), problem.exit_code]
    told, rows = group.broadcast([said, plain])
    if problem is not None:
        raise problem
    if told is not None:
        raise UsageError(told[0])
    if group.is_first:
        return found
    return [DatasetCopy(Path(row[0]), item.path, row[1]) for item, row in zip(config.data, rows, strict=True)]


def _ensure(item: DataItem, folder: Path, console: Console | None) -> DatasetCopy:
    reading = None if item.convert is None else item.convert.reading()
    if is_dataset(item.path) and item.convert is not None:
        raise UsageError(f"{item.path} is a dataset, which is read as it is; leave out its section `convert`")
    named = reading is not None and (reading.source is not None or reading.source_key is not None)
    copy = ensure_dataset(item.path, folder, reading, need_sources=named, console=console)
    if copy.is_copy:
        with open_structures(copy.path) as reader:
            _require_sources(item, reader)
        for line in copy.unreadable.format_lines() if console is not None else ():
            assert console is not None
            console.print(line, highlight=False, soft_wrap=True)
    return copy


def _require_sources(item: DataItem, reader: StructureReader) -> None:
    """Refuse a file without labels, or whose labels have no source.

    Raises
    ------
    DataError, UsageError
        with the keys of the configuration that say it.
    """
    if not {"energy", "forces", "stress"} & set(reader.fields):
        raise DataError(
            f"{item.path} has no labels (energies, forces or stress) under names that are certain; name them in the "
            "configuration: convert: {energy_key: KEY, forces_key: KEY}"
        )
    if not reader.sources or any(not source.level_of_theory for source in reader.sources):
        what = "which source its labels are of" if not reader.sources else "at which level its labels were computed"
        raise UsageError(
            f"{item.path} does not state {what}; say it in the configuration, beside its path: "
            "convert: {source: NAME, level_of_theory: TEXT}"
        )


def list_sources(items: Sequence[DataItem], readers: Sequence[StructureReader]) -> list[str]:
    """Return the names of the sources that are trained on, in their order."""
    names = [
        source.name
        for item, reader in zip(items, readers, strict=True)
        for source in reader.sources
        if item.sources is None or source.name in item.sources
    ]
    return list(dict.fromkeys(names))
