"""Finds the source of each structure of a block."""

from __future__ import annotations

import numpy as np

from atomsieve.errors import DataError, UsageError
from atomsieve.structures.block import SourceColumn
from atomsieve.structures.conversion.options import ConvertOptions
from atomsieve.structures.conversion.validation import ValidBlock
from atomsieve.structures.fields import LABELS
from atomsieve.structures.source import SourceInfo


def find_sources(valid: ValidBlock, given: SourceInfo | None, options: ConvertOptions) -> SourceColumn:
    """Return the source of each structure: the value of `source_key` if that is set, else the source of its file.

    Raises
    ------
    DataError
        if a structure lacks the key of its source or level of theory.
    UsageError
        if labelled structures have no source, or a source no level of theory.
    """
    if options.source_key or options.level_key:
        return SourceColumn.of(_find_stated(valid, given, options))
    block, kept = valid.block, valid.kept
    if given is None and block.sources is not None:
        column = SourceColumn.of(block.sources)
        sources = SourceColumn(column.known, column.numbers[kept])
    else:
        known = () if given is None else (given,)
        sources = SourceColumn(known, np.full(len(kept), len(known) - 1, np.int32))
    if options.need_sources:
        _require_sources(valid, sources, given)
    return sources


def _find_stated(valid: ValidBlock, given: SourceInfo | None, options: ConvertOptions) -> list[SourceInfo | None]:
    """Return the sources of which the structures state the name, or the level, or both."""
    block, places = valid.block, valid.kept.tolist()
    own = valid.values_of(options.source_key) if options.source_key else [None] * len(places)
    level = valid.values_of(options.level_key) if options.level_key else [None] * len(places)
    for key, values, what in ((options.source_key, own, "source"), (options.level_key, level, "level of theory")):
        missing = next((k for k, value in zip(places, values, strict=True) if value is None), None) if key else None
        if missing is not None and options.need_sources:
            raise DataError(f"{block.places[missing]} has no {key!r} to tell its {what}")
    return [
        given if pair[0] is None and not options.need_sources else _stated_source(*pair, given)
        for pair in zip(own, level, strict=True)
    ]


def _require_sources(valid: ValidBlock, sources: SourceColumn, given: SourceInfo | None) -> None:
    """Raise a UsageError if a structure with labels has no source, or one given without a level of theory."""
    labelled = np.zeros(len(sources), bool)
    for name in LABELS:
        has = getattr(valid.batch, f"has_{name}")
        labelled |= False if has is None else has
    without_level = given is not None and not given.level_of_theory
    wrong = np.flatnonzero(labelled & (without_level | (sources.numbers < 0)))
    if not len(wrong):
        return
    where = valid.block.places[int(valid.kept[wrong[0]])]
    if sources[int(wrong[0])] is None:
        raise UsageError(
            f"{where} has labels: say what they are with --source NAME --level-of-theory TEXT (or --source-key), or "
            "leave them out with --no-labels"
        )
    raise UsageError(
        f"{where} has labels: at which level were they computed? Say it with --level-of-theory TEXT, e.g. "
        "'PBE, PAW (VASP)', or with --level-key KEY where each structure states it"
    )


def _stated_source(own: object, level: object, given: SourceInfo | None) -> SourceInfo:
    name = str(own) if own is not None else given.name if given is not None else None
    if name is None:
        raise UsageError("a level of theory needs a source: give --source NAME or --source-key KEY")
    return SourceInfo(name, str(level) if level is not None else given.level_of_theory if given is not None else "")
