"""Frames of text files that begin and end with a word of their own: read line by line, bounded in memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from atomsieve.structures.item import ReadRequest, open_with_progress

log = logging.getLogger(__name__)

LARGEST_LINE = 1 << 20
LARGEST_FRAME = 10_000_000
"""Lines of one frame."""


class CutOff(Exception):  # noqa: N818 - what happened to the text, not an error of the program
    """A frame that has no end: the next one begins in it, the file ends, or it is too long."""


def iterate_frames(request: ReadRequest, begin: str, end: str) -> Iterator[tuple[int, list[str] | CutOff]]:
    """Yield the number of the line of `begin` and the lines up to `end`, both left out, of each frame.

    What lies between frames is left out; a frame without an end is `CutOff`.
    """
    lines: list[str] | None = None
    first = number = 0
    with open_with_progress(request.path) as (file, fraction):
        try:
            while raw := file.readline(LARGEST_LINE):
                number += 1
                line = raw.decode(errors="replace")
                word = line.strip()
                if word == begin:
                    if lines is not None:
                        yield first, CutOff(f"another {begin} in line {number}")
                    lines, first = [], number
                elif lines is None:
                    continue
                elif word == end:
                    yield first, lines
                    lines = None
                    request.tick(fraction())
                elif len(lines) >= LARGEST_FRAME:
                    yield first, CutOff(f"more than {LARGEST_FRAME:,} lines")
                    lines = None
                else:
                    lines.append(line)
        except (EOFError, OSError) as error:  # the compressed stream ends early or is damaged
            log.debug("%s: %s", request.path, error)
            lines = [] if lines is None else lines
            first = first if lines else number
    if lines is not None:
        yield first, CutOff(f"no {end} before the end of the file")
