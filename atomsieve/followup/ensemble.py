"""The ensemble that screened, for follow-ups that evaluate more structures with it."""

from __future__ import annotations

from pathlib import Path

from atomsieve.errors import AtomSieveError, DataError
from atomsieve.screen.results.record import Results


def find_ensemble(results: Results, given: str | Path | None, use: str) -> Path:
    """Return the folder of the ensemble that screened, after checking its identity.

    given : where it is now; None takes the path in run.json. use : what needs it, for messages.

    Raises
    ------
    AtomSieveError
        if it is missing, or servers screened and nothing is given; DataError if it is another ensemble.
    """
    from atomsieve.gfm import ensemble_id

    path = given or results.manifest.get("ensemble_path")
    if path is None:
        servers = ", ".join(results.manifest.get("endpoints", ())) or "another program"
        raise AtomSieveError(
            f"{servers} screened, and {use} needs the ensemble that screened; name its folder with --ensemble"
        )
    if not (Path(path) / "manifest.json").is_file():
        raise AtomSieveError(
            f"{use} needs the ensemble that screened, which is not at {path}; name its folder with --ensemble"
        )
    found, screened = ensemble_id(path), results.manifest["ensemble"]["id"]
    if found != screened:
        raise DataError(
            f"{path} is not the ensemble that screened (id {found[:12]}, screened with {screened[:12]}); name that one "
            "with --ensemble, or screen again"
        )
    return Path(path)
