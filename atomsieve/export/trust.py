"""Which artefacts with code in them this user may open: those made here, and those whose sender the user trusts.

TorchScript and .pt2 files are programs, so a gfm/ folder from a stranger must not run them unasked. A mark for each
file that may be opened, named by the file's SHA-256, lies in a state directory outside of any gfm/ folder:
`$XDG_STATE_HOME/atomsieve/trusted`, or `~/.local/state/atomsieve/trusted`. ONNX files hold no code and need no mark.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from atomsieve.errors import AtomSieveError
from atomsieve.gfm import ExportEntry
from atomsieve.gfm.backends import holds_code
from atomsieve.gfm.exports import FOLDER
from atomsieve.runs.hashing import hash_file

_ELSEWHERE = "set XDG_STATE_HOME to a directory of your own"

log = logging.getLogger(__name__)


def find_trust_directory() -> Path:
    """Return where the marks of this user lie.

    Raises
    ------
    AtomSieveError
        if this user has no home directory and XDG_STATE_HOME is not set to an absolute path.
    """
    named = os.environ.get("XDG_STATE_HOME", "")
    try:
        state = Path(named) if Path(named).is_absolute() else Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise AtomSieveError(
            "this user has no home directory; set XDG_STATE_HOME to a directory of your own"
        ) from error
    return state / "atomsieve" / "trusted"


def trust(files: Iterable[Path]) -> bool:
    """Mark files as ones that this user may open; return whether that worked.

    Where marks cannot be written, only a warning is logged: the files are good, and `require_trust` gives the remedy.
    """
    try:
        place = find_trust_directory()
        place.mkdir(parents=True, exist_ok=True)
        place.chmod(0o700)
        for path in files:
            (place / hash_file(path)).write_text(f"{path.name}\n")
    except (OSError, AtomSieveError) as error:
        log.warning("could not note that artefacts made here may be opened (%s); %s", error, _ELSEWHERE)
        return False
    return True


def is_trusted(folder: str | Path, entry: ExportEntry) -> bool:
    """Return whether an artefact may be opened, by the digests in the manifest; opening it checks the files too."""
    if not holds_code(entry.format):
        return True
    digests = [str(expected.get("sha256", "")) for expected in entry.files.values()]
    try:
        place = find_trust_directory()
    except AtomSieveError:
        return False
    return bool(digests) and all(_has_mark(place, d) for d in digests)


def require_trust(path: Path, what: str) -> None:
    """Raise an error for a file that this user neither made nor trusts.

    what : the content of the file, e.g. "TorchScript code".

    Raises
    ------
    AtomSieveError
        in one line, with the ways out.
    """
    place = find_trust_directory()
    if _has_mark(place, hash_file(path)):
        return
    # gfm/exports/<key>/<file>
    folder = path.parents[2] if len(path.parents) > 2 and path.parents[1].name == FOLDER else "FOLDER"
    raise AtomSieveError(
        f"{path} holds {what}, and nothing in {place} says that you made or trust it{_describe_obstacle(place)}; "
        f"export it again here with --force, or run atomsieve export trust {folder} if you trust its sender, or use "
        "--backend onnx"
    )


def _has_mark(place: Path, digest: str) -> bool:
    """Return whether there is a mark, in a directory that no other user can write to."""
    try:
        found = place.stat()
        safe = found.st_uid == os.geteuid() and not found.st_mode & 0o022
        return safe and re.fullmatch("[0-9a-f]{64}", digest) is not None and (place / digest).is_file()
    except OSError:  # no directory, or one that cannot be read: no marks
        return False


def _describe_obstacle(place: Path) -> str:
    """Return why marks cannot be written or believed, in brackets; an empty text if they can."""
    try:
        nearest = next(p for p in (place, *place.parents) if p.exists())
        found = nearest.stat()
    except OSError as error:
        return f" ({error}; {_ELSEWHERE})"
    if not stat.S_ISDIR(found.st_mode) or not os.access(nearest, os.W_OK | os.X_OK):
        return f" ({nearest} is not a writable directory; {_ELSEWHERE})"
    if nearest == place and (found.st_uid != os.geteuid() or found.st_mode & 0o022):
        return f" (other users can write there; {_ELSEWHERE})"
    return ""
