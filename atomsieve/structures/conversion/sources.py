"""Finds the source of each structure of a block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atomsieve.errors import DataError, UsageError
from atomsieve.structures.conversion.options import ConvertOptions
from atomsieve.structures.fields import LABELS
from atomsieve.structures.source import SourceInfo
from atomsieve.structures.validation import ValidBlock


def find_sources(valid: ValidBlock, given: SourceInfo | None, options: ConvertOptions) -> Sequence[SourceInfo | None]:
    """Return the source of each structure: the value of `source_key` if that is set, else the source of its file.

    Raises
    ------
    DataError
        if a structure lacks the key of its source or level of theory.
    UsageError
        if labelled structures have no source, or a source no level of theory.
    """
    block, places = valid.block, valid.kept.tolist()
    own = valid.values_of(options.source_key) if options.source_key else [None] * len(places)
    level = valid.values_of(options.level_key) if options.level_key else [None] * len(places)
    for key, values, what in ((options.source_key, own, "source"), (options.level_key, level, "level of theory")):
        missing = next((k for k, value in zip(places, values, strict=True) if value is None), None) if key else None
        if missing is not None and options.need_sources:
            raise DataError(f"{block.places[missing]} has no {key!r} to tell its {what}")
    if options.source_key or options.level_key:
        return [
            given if pair[0] is None and not options.need_sources else _stated_source(*pair, given)
            for pair in zip(own, level, strict=True)
        ]
    stated = (
        [block.sources[k] for k in places] if given is None and block.sources is not None else [given] * len(places)
    )
    if not options.need_sources:
        return stated
    labelled = np.zeros(len(places), bool)
    for name in LABELS:
        has = getattr(valid.batch, f"has_{name}")
        labelled |= False if has is None else has
    for k in np.flatnonzero(labelled).tolist():
        source = stated[k]
        if source is None:
            raise UsageError(
                f"{block.places[places[k]]} has labels: say what they are with --source NAME --level-of-theory TEXT "
                "(or --source-key), or leave them out with --no-labels"
            )
        if given is not None and not source.level_of_theory:
            raise UsageError(
                f"{block.places[places[k]]} has labels: at which level were they computed? Say it with "
                "--level-of-theory TEXT, e.g. 'PBE, PAW (VASP)', or with --level-key KEY where each structure states it"
            )
    return stated


def _stated_source(own: object, level: object, given: SourceInfo | None) -> SourceInfo:
    name = str(own) if own is not None else given.name if given is not None else None
    if name is None:
        raise UsageError("a level of theory needs a source: give --source NAME or --source-key KEY")
    return SourceInfo(name, str(level) if level is not None else given.level_of_theory if given is not None else "")
