"""CIF, plain or gzip."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.formats.base import Format, TextSink
from atomsieve.structures.formats.small_text import parse_text
from atomsieve.structures.item import BadItem, Item, ReadRequest, item_from_atoms

if TYPE_CHECKING:
    from ase import Atoms

PARTIAL = 1e-3


def read_cif(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the structures of a CIF file; partly occupied sites make one a `BadItem`."""
    path, tick = request.path, request.tick
    from ase.io.cif import read_cif as parse

    for k, atoms in enumerate(parse_text(path, lambda file: list(parse(file, index=slice(None))))):
        where = str(path) if k == 0 else f"{path}: structure {k}"
        if isinstance(atoms, BadItem):
            yield atoms
        elif _is_disordered(atoms):
            yield BadItem("partly occupied sites", where)
        else:
            yield item_from_atoms(atoms, where)
    tick(1.0)


def _is_disordered(atoms: Atoms) -> bool:
    sites = atoms.info.get("occupancy") or {}
    return any(len(site) > 1 or abs(sum(site.values()) - 1) > PARTIAL for site in sites.values())


class CifSink(TextSink):
    """CIF, one data block per structure; structures without a cell are skipped, as CIF cannot hold them."""

    def write(self, batch: StructureBatch, info: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Append structures."""
        from ase.io.cif import write_cif

        whole = np.abs(np.linalg.det(batch.cell)) > 0
        self.skipped += int((~whole).sum())
        for image in batch.take(np.flatnonzero(whole)).to_ase():
            text = io.BytesIO()
            write_cif(text, [image])
            block = text.getvalue().decode().replace("data_image0", f"data_{image.info['id']}", 1)
            self.text.write(block)


ROW = Format(
    name="cif",
    about="CIF, one data block per structure",
    endings=(".cif",),
    read=read_cif,
    sink=CifSink,
    lacks="structures without a cell; labels, charge, spin",
    compressed=True,
)
