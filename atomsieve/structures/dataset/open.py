"""Opens structures on disk: a dataset folder, a bare BP5 directory, or a BP directory in HydraGNN's schema.

with open_structures("candidates.bp") as reader:
for batch in reader.iter_batches(10_000):
...
"""

from __future__ import annotations

from pathlib import Path

from atomsieve.errors import DataError, UsageError, unknown
from atomsieve.structures.dataset.manifest import NAME, is_dataset_folder
from atomsieve.structures.dataset.manifest_reader import ManifestReader
from atomsieve.structures.dataset.reader import FileReader
from atomsieve.structures.dataset.third_party_bp import open_third_party


def open_structures(
    path: str | Path,
    *,
    verify: str = "full",
    label: str = "all",
    restore_energies: bool = True,
    timeout: float = 60.0,
    copies: str | Path | None = None,
) -> FileReader:
    """Open structures for reading by global index.

    Parameters
    ----------
    path
        a dataset folder, a bare BP5 directory with the same variable names, or a BP directory of HydraGNN.
    verify
        "full" verifies the bytes of each step before their first use; "size" only sizes and metadata.
    label
        of HydraGNN's files: "trainset", "valset", "testset", or "all" (those there are, in this order).
    restore_energies
        of HydraGNN's files: add the linear regression over the composition back that was taken off.
    copies
        folder that holds copies of some parts of a dataset folder under their names, on a nearer disk; these parts
        are read there and verified like the originals.
    timeout
        seconds allowed for probing files of other programs; a child process does it, since damaged files make the
        library hang or crash.

    Raises
    ------
    DataError
        if it is not there, not such files, incomplete or damaged.
    """
    path = Path(path)
    if verify not in ("full", "size"):
        raise unknown("verify", verify, ("full", "size"))
    if not path.exists():
        partial = path.with_name(f"{path.name}.partial")
        hint = f"; {partial.name} beside it is unfinished: its writer was stopped" if partial.exists() else ""
        raise DataError(f"{path} does not exist{hint}")
    if not path.is_dir():
        raise DataError(f"{path} is a file, not a dataset folder; 'atomsieve data convert {path} OUT.bp' makes one")
    if is_dataset_folder(path):
        return ManifestReader(path, verify, None if copies is None else Path(copies))
    if copies is not None:
        raise UsageError(f"{path} is no dataset folder of parts, so there are no copies of parts; leave them out")
    if (path / "md.idx").exists() or (path / "data.0").exists():
        return open_third_party(path, label=label, restore_energies=restore_energies, timeout=timeout)
    if (path / NAME).exists():
        return ManifestReader(path, verify)  # raises the error that names the damage
    raise DataError(f"{path} is neither a dataset folder ({NAME} is missing) nor a BP5 directory (md.idx is missing)")
