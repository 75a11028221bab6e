"""Targets of files that are made from results: refused before any work if they cannot or must not be written."""

from __future__ import annotations

from pathlib import Path

from atomsieve.errors import AtomSieveError, UsageError
from atomsieve.runs.output_files import require_writable
from atomsieve.screen.results.record import Results


def check_target(path: Path, overwrite: bool, results: Results) -> None:
    """Refuse a file that is there already, unless asked to replace it, and one in a folder that is not.

    The input that was screened, and what lies in the results folder, is never replaced.
    """
    check_apart(path, results)
    if path.exists() and not overwrite:
        raise AtomSieveError(f"{path} is already there; choose another name or give --overwrite")
    if not path.absolute().parent.is_dir():
        raise AtomSieveError(f"there is no folder {path.parent} to write {path.name} to; make it first")
    require_writable(path)


def check_apart(path: Path, results: Results) -> None:
    """Refuse to write over the screened input, into the results folder, or a folder that holds either."""
    target = path.resolve()
    for kept, what in (
        (Path(results.manifest["input_path"]), "the structures that were screened"),
        (results.folder.path, "the results that are asked"),
    ):
        kept = kept.resolve()
        if target == kept or kept in target.parents or target in kept.parents:
            raise UsageError(f"{path} would overwrite {what} ({kept}), or lie among them; choose another place")
