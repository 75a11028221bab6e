"""Writes extended XYZ without loss, by compiled code, with the names that ASE, MACE, nequip, GAP or NEP read."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import POINTER, c_char, c_char_p, c_double, c_float, c_int32, c_int64, c_uint8, c_void_p
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import UsageError
from atomsieve.native import text_library
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.fields import FIELDS, LABELS
from atomsieve.structures.formats.base import TextSink, WriteOptions
from atomsieve.structures.formats.extxyz_text import KEYS, Dialect, format_info, write_in_python

DIALECTS: dict[str, Dialect] = {
    "ase": Dialect(),
    "nequip": Dialect(),
    "mace": Dialect(
        energy="REF_energy",
        forces="REF_forces",
        stress="REF_stress",
        charge="total_charge",
        spin="total_spin",
        second_spin="spin",
    ),
    "gap": Dialect(energy="dft_energy", forces="dft_force", virial="dft_virial"),
    "nep": Dialect(lattice="lattice", properties="properties", forces="force", virial="virial", needs_cell=True),
}
"""Dialects by name. nequip reads what ASE reads. The names of MACE are its defaults (`DefaultKeys`); since others write
`total_spin` for S, the multiplicity is stated as `spin` too. `dft_` is what data sets of GAP use with gap_fit."""


class _Structures(ctypes.Structure):
    _fields_: ClassVar[Any] = [
        ("count", c_int64),
        ("ptr", POINTER(c_int64)),
        ("numbers", POINTER(c_uint8)),
        ("positions", POINTER(c_double)),
        ("single_positions", POINTER(c_float)),
        ("cell", POINTER(c_double)),
        ("pbc", POINTER(c_uint8)),
        ("id", POINTER(c_int64)),
        ("charge", POINTER(c_float)),
        ("spin", POINTER(c_float)),
        *((name, POINTER(c_double)) for name in ("energy", "forces", "stress")),
        *((name, POINTER(c_uint8)) for name in ("has_energy", "has_forces", "has_stress")),
        *((f"{name}_key", c_char_p) for name in KEYS),
        ("texts", c_char_p),
        ("text_ends", POINTER(c_int64)),
        ("text_of", POINTER(c_int32)),
    ]


class ExtxyzSink(TextSink):
    """Extended XYZ with energy, forces, stress, charge, spin, id, source and further values, in one of the dialects.

    Every number reads back as the same number, texts and truth values as what they are.
    """

    def __init__(self, path: Path, options: WriteOptions) -> None:
        super().__init__(path, options)
        self.dialect = DIALECTS[options.dialect or "ase"]
        self._sources = [
            {"source": source.name, "level_of_theory": source.level_of_theory} for source in options.sources
        ]

    def write(self, batch: StructureBatch, info: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Append structures. A value of `info` replaces the id, charge, spin or source of its structure.

        An id of `info` may be a text; then all are, and an empty one is left out.

        Raises
        ------
        UsageError
            if `info` holds a label.
        """
        head = np.full(len(batch), -1) if batch.head is None else batch.head
        if info is None:
            texts, text_of, text_ids = [format_info(source) for source in self._sources], head, False
        else:
            text_ids = any(isinstance(values.get("id", 0), str | type(None)) for values in info)
            taken_over = ("charge", "spin") if text_ids else ("id", "charge", "spin")
            batch = _take_own(batch, info, taken_over)
            texts = []
            for own, values in zip(head.tolist(), info, strict=True):
                more = {
                    key: value for key, value in values.items() if key not in taken_over and (key, value) not in NO_ID
                }
                if taken := more.keys() & self.dialect.reserved:
                    raise UsageError(f"{min(taken)!r} is the name of a label or of the format itself in {self.path}")
                texts.append(format_info({**(self._sources[own] if own >= 0 else {}), **more}))
            text_of = np.arange(len(batch))
        kept = np.asarray(batch.cell.any(axis=2)).all(axis=1)
        if self.dialect.needs_cell and not kept.all():
            self.skip("NEP needs three lattice vectors", int((~kept).sum()))
            batch, text_of = batch.take(np.flatnonzero(kept)), text_of[kept]
        library = text_library()
        if library is None:
            self.binary.write(
                write_in_python(
                    batch, self.dialect, [texts[k] if k >= 0 else "" for k in text_of.tolist()], text_ids=text_ids
                )
            )
            return
        given, kept_alive = _describe(batch, self.dialect, texts, text_of, text_ids=text_ids)
        library.extxyz_write.restype = library.extxyz_text.restype = c_void_p
        library.extxyz_text_size.restype = c_int64
        result = c_void_p(library.extxyz_write(ctypes.byref(given)))
        try:
            address, size = library.extxyz_text(result), library.extxyz_text_size(result)
            self.binary.write((c_char * size).from_address(address) if size else b"")
        finally:
            library.extxyz_free_text(result)
        del kept_alive


NO_ID = (("id", ""), ("id", None))
"""A text id that is missing: a frame states none."""


def _take_own(batch: StructureBatch, info: Sequence[Mapping[str, Any]], names: Sequence[str]) -> StructureBatch:
    """Return the batch with those ids, charges and multiplicities (`names`) that `info` states in place of its own."""
    changes: dict[str, NDArray[Any]] = {}
    for name in names:
        if any(name in values for values in info):
            own = getattr(batch, name)
            own = np.full(len(batch), np.nan) if own is None else own
            stated = [values.get(name, given) for values, given in zip(info, own, strict=True)]
            changes[name] = np.array(stated, FIELDS[name].dtype)
    return batch.replace(**changes) if changes else batch


def _describe(
    batch: StructureBatch, dialect: Dialect, texts: Sequence[str], text_of: NDArray[Any], *, text_ids: bool
) -> tuple[_Structures, list[Any]]:
    """Return what the library takes, and the arrays that must live as long."""
    given, kept = _Structures(), list[Any]()
    types = dict(given._fields_)

    def set_array(name: str, array: NDArray[Any] | None) -> None:
        if array is not None:
            held = np.ascontiguousarray(array, np.dtype(types[name]._type_))
            kept.append(held)
            setattr(given, name, held.ctypes.data_as(types[name]))

    given.count = len(batch)
    for name in ("ptr", "numbers", "cell", "pbc", *(() if text_ids else ("id",)), "charge", "spin"):
        set_array(name, getattr(batch, name))
    for name in LABELS:
        set_array(name, getattr(batch, name))
        set_array(f"has_{name}", getattr(batch, f"has_{name}"))
    set_array("single_positions" if batch.positions.dtype == np.float32 else "positions", batch.positions)
    for name in KEYS:
        word = getattr(dialect, name)
        setattr(given, f"{name}_key", word.encode() if word else None)
    words = [text.encode() for text in texts]
    given.texts = b"".join(words)
    set_array("text_ends", np.cumsum([len(word) for word in words] or [0]))
    set_array("text_of", text_of)
    return given, kept
