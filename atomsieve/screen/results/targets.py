"""Checks of output paths before any work: files made from results must be writable and must not destroy any."""

from __future__ import annotations

from pathlib import Path

from atomsieve.errors import AtomSieveError, UsageError
from atomsieve.runs.output_files import require_writable
from atomsieve.screen.results.record import Results


def check_target(path: Path, overwrite: bool, results: Results) -> None:
    """Refuse an existing file unless `overwrite`, and a file in a folder that does not exist.

    The screened input and the files of the results folder are never replaced.
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
    converted = results.manifest.get("converted", {}).get("path", results.manifest["input_path"])
    for kept, what in (
        (Path(results.manifest["input_path"]), "the structures that were screened"),
        (Path(converted), "the structures that were screened"),
        (results.folder.path, "the results themselves"),
    ):
        kept = kept.resolve()
        if target == kept or kept in target.parents or target in kept.parents:
            raise UsageError(f"{path} would overwrite {what} ({kept}), or lie among them; choose another place")
