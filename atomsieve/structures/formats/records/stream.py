"""The values of a JSON file one after another: no more of the text than one value is in memory."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from atomsieve.errors import DataError

BLOCK = 1 << 20
LARGEST_VALUE = 1 << 30
"""Characters of one value: a structure with its labels, never a file of them."""
_SPACE = " \t\r\n"
_LITERAL = 16
"""Characters at the end of what was read that may be the beginning of a word or a number, cut off."""


class JsonText:
    """Reads values, keys and brackets of a JSON text from a file.

    `NaN` and `Infinity` are numbers here, as Python and pymatgen write them. A key that an object has twice is noted
    in `twice` until the next value.

    Raises
    ------
    DataError
        where the text is not JSON, with the place.
    """

    def __init__(self, path: Path, file: IO[bytes], tick: Callable[[], None] = lambda: None) -> None:
        self.path, self._file, self._tick = path, file, tick
        self._text, self._at, self._before, self._done = "", 0, 0, False
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._decoder = json.JSONDecoder(object_pairs_hook=self._build)
        self._mark: int | None = None
        self.twice: str | None = None

    def _build(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            self.twice = next(name for name in names if names.count(name) > 1)
        return found

    @property
    def place(self) -> int:
        """Characters that lie behind."""
        return self._before + self._at

    def mark(self) -> None:
        """Keep what follows, so that `rewind` can return to it."""
        self._mark = self._at

    def rewind(self) -> None:
        """Go back to the mark."""
        assert self._mark is not None
        self._at, self._mark = self._mark, None

    def peek(self) -> str:
        """Return the next character that is no white space; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if self._done:
                return ""
            self._read_more()

    def skip(self, character: str) -> bool:
        """Step over a character, and return True, if it comes next."""
        if self.peek() != character:
            return False
        self._at += 1
        return True

    def take(self, character: str) -> None:
        """Step over a character that has to come next."""
        if not self.skip(character):
            self._refuse(f"{character!r} is expected", self._at)

    def take_key(self) -> str:
        """Step over a key and its colon, and return it."""
        if self.peek() != '"':
            self._refuse("a key is expected", self._at)
        key = self.take_value()
        self.take(":")
        return str(key)

    def take_value(self) -> Any:
        """Step over the next value and return it."""
        self.twice = None
        self.peek()
        while True:
            try:
                found, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self._text) - _LITERAL or error.msg.startswith("Unterminated string")
                if self._done or not cut:
                    self._refuse(error.msg, error.pos)
            except RecursionError:
                self._refuse("brackets are nested too deeply", self._at)
            except ValueError as error:  # a whole number of thousands of digits
                self._refuse(str(error), self._at)
            else:
                if self._done or end < len(self._text) or self._text[end - 1] in '}]"':  # a number may go on
                    self._at = end
                    return found
            self._read_more()

    def _read_more(self) -> None:
        first = self._at if self._mark is None else self._mark
        kept = len(self._text) - first
        if kept > LARGEST_VALUE:
            self._refuse(f"one value has more than {LARGEST_VALUE:,} characters", self._at)
        try:
            # A value longer than a block: read as much again as there is, so that the work stays linear.
            block = self._file.read(max(BLOCK, kept))
            more = self._decode.decode(block, final=not block)
        except (EOFError, OSError, UnicodeDecodeError, ValueError) as error:
            raise DataError(f"{self.path} cannot be read: {error}") from error
        self._text = self._text[first:] + more
        self._before += first
        self._at -= first
        self._mark = None if self._mark is None else 0
        self._done = not block
        self._tick()

    def _refuse(self, what: str, at: int) -> None:
        if (self._done and at >= len(self._text.rstrip(_SPACE)) - 1) or "Unterminated" in what:
            raise DataError(f"{self.path} is not complete JSON: it ends at character {self._before + len(self._text)}")
        shown = " ".join(self._text[max(at - 10, 0) : at + 20].split())
        raise DataError(f"{self.path} is not JSON: {what} at character {self._before + at} (... {shown} ...)")
