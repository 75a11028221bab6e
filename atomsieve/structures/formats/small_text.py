"""Parses small text files with a parser of ASE: one file is read whole, its warnings go to the log."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from atomsieve.structures.item import BadItem, open_with_progress

if TYPE_CHECKING:
    from ase import Atoms

log = logging.getLogger(__name__)


def parse_text(path: Path, parse: Callable[[io.StringIO], list[Atoms]]) -> list[Atoms | BadItem]:
    """Return the structures that `parse` finds in a small text file, or one `BadItem`; its warnings go to the log."""
    try:
        with open_with_progress(path) as (file, _), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = parse(io.StringIO(file.read().decode(errors="replace")))
    except Exception as error:  # a parser of free text fails in every way there is
        log.debug("%s: %s", path, error, exc_info=True)
        return [BadItem(f"not readable ({type(error).__name__})", str(path))]
    for warning in caught:
        log.debug("%s: %s", path, warning.message)
    return [*found] or [BadItem("no structure in it", str(path))]
