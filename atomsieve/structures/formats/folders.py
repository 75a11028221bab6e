"""Writes folders with one file per structure, named by its id."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from atomsieve.errors import UsageError
from atomsieve.runs.output_files import atomic_folder
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.formats.base import Format, StructureSink, WriteOptions

LONGEST_NAME = 100  # characters


def name_file(text: str) -> str:
    """Return a text as the name of a file: characters but letters, digits and `.+-_` become `_`; long ones are cut."""
    return re.sub(r"[^\w.+-]+", "_", text)[:LONGEST_NAME].lstrip(".") or "_"


class FolderSink(StructureSink):
    """A folder that appears under its name when it is complete: `ID.cif` or `ID.vasp`, of a repeated id `ID_2.cif`.

    What is not periodic along three axes is skipped and counted: neither CIF nor VASP can say it.

    Raises
    ------
    UsageError
        if `path` is a file, or a folder that is not to be replaced or holds files of another kind.
    """

    def __init__(self, path: Path, options: WriteOptions, form: Format) -> None:
        super().__init__(path, options)
        self.form = form
        self._written: Counter[str] = Counter()

    def __enter__(self) -> Self:
        path, ending = self.path, self.form.single_ending
        if path.is_file():
            raise UsageError(f"{path} is a file; name a folder")
        if path.exists() and not self.options.overwrite and any(path.iterdir()):
            raise UsageError(f"{path} exists; choose another name, or --overwrite to replace it")
        if path.exists() and (other := next((p for p in path.iterdir() if p.suffix != ending), None)):
            raise UsageError(f"{path} holds {other.name}, which no export wrote; choose another name")
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self.draft = stack.enter_context(atomic_folder(path))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def write(self, batch: StructureBatch, info: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Write a file for each structure, named by its id: the text `id` of `info`, or the integer.

        The formats have no place for other values of `info`.
        """
        form = self.form.single
        assert form is not None
        for k in self.keep_crystals(batch, self.form.name.upper()):
            if batch.ptr[k] == batch.ptr[k + 1]:
                self.skip("no atoms")
                continue
            text = "" if info is None else info[k].get("id", "")
            own = name_file(text) if isinstance(text, str) and text else str(int(batch.id[k]))
            self._written[own] += 1
            name = f"{own}" if self._written[own] == 1 else f"{own}_{self._written[own]}"
            (self.draft / f"{name}{self.form.single_ending}").write_text(form(batch, k))
