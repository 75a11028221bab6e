"""A format in one file: a line per molecule, `Z x y z; Z x y z; ...`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from atomsieve.structures import StructureBatch
from atomsieve.structures.formats import BadItem, Format, Item, ReadRequest, TextSink


def read_toy(request: ReadRequest) -> Iterator[Item | BadItem]:
    for k, line in enumerate(request.path.read_text().splitlines()):
        atoms = np.array([[float(word) for word in atom.split()] for atom in line.split(";")])
        yield Item(
            numbers=atoms[:, 0].astype(int),
            positions=atoms[:, 1:],
            cell=np.zeros((3, 3)),
            pbc=np.zeros(3, bool),
            where=f"{request.path}: line {k}",
        )
    request.tick(1.0)


class ToySink(TextSink):
    def write(self, batch: StructureBatch, info: Sequence[Mapping[str, Any]] | None = None) -> None:
        for start, stop in zip(batch.ptr[:-1].tolist(), batch.ptr[1:].tolist(), strict=True):
            rows = zip(batch.numbers[start:stop].tolist(), batch.positions[start:stop].tolist(), strict=True)
            self.text.write("; ".join(f"{z} {x!r} {y!r} {w!r}" for z, (x, y, w) in rows) + "\n")


ROW = Format(
    name="toy", about="a line per molecule", endings=(".toy",), read=read_toy, sink=ToySink, lacks="cells, labels"
)
