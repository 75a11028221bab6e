"""Groups and arrays of an HDF5 file: no links to other places, no data of other files, sizes that can be true."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from atomsieve.errors import DataError, require
from atomsieve.structures.formats.learning.deepmd import SystemFiles
from atomsieve.structures.formats.learning.units_of_keys import plain_unit

LARGEST_ATOMS = 10_000_000
LARGEST_RATIO = 5000
"""How many times the stored size an array may have when it is unpacked."""
UNIT_ATTRIBUTES = ("units", "unit", "u")


def find_links(group: Any, where: str, known: Mapping[str, bool] | None = None) -> dict[str, bool]:
    """Return the names in a group: True for groups, False for arrays, as in `known` where that has the same names.

    Raises
    ------
    DataError
        for a link to another place, which could be any file.
    """
    h5py = require("h5py", "data", "reading HDF5 files")
    names = {raw.decode(errors="surrogateescape"): raw for raw in group.id}
    if known is not None and known.keys() == names.keys():
        return dict(known)
    for name in names:
        _require_own(group, name, where)
    kinds = {name: h5py.h5g.get_objinfo(group.id, raw).type for name, raw in names.items()}
    wanted = (h5py.h5g.GROUP, h5py.h5g.DATASET)
    return {name: kind == h5py.h5g.GROUP for name, kind in kinds.items() if kind in wanted}


def _require_own(group: Any, name: str, where: str) -> None:
    h5py = require("h5py", "data", "reading HDF5 files")
    if group.id.links.get_info(name.encode(errors="surrogateescape")).type != h5py.h5l.TYPE_HARD:
        raise DataError(f"{where}: {group.name.rstrip('/')}/{name} is a link to another place; only own data are read")


def open_group(group: Any, name: str, where: str) -> Any:
    """Return a group in a group.

    Raises
    ------
    DataError
        for a link to another place.
    """
    _require_own(group, name, where)
    return group[name]


def open_array(group: Any, name: str, where: str) -> Any:
    """Return an array after a look at where its data lie and how large they are.

    Raises
    ------
    DataError
        for data in other files, and for sizes that the file cannot hold.
    """
    h5py = require("h5py", "data", "reading HDF5 files")
    _require_own(group, name, where)
    array, where = group[name], f"{where}: {name}"
    plan = array.id.get_create_plist()
    if plan.get_external_count() or plan.get_layout() == h5py.h5d.VIRTUAL:
        raise DataError(f"{where} keeps its data in another file; only own data are read")
    size, stored = math.prod(array.shape or ()) * array.dtype.itemsize, array.id.get_storage_size()
    allowed = stored * (LARGEST_RATIO if plan.get_layout() == h5py.h5d.CHUNKED else 1)
    if array.shape is not None and array.dtype.kind != "O" and size > max(allowed, 4096):
        raise DataError(f"{where} claims {size:,} bytes, but the file holds {stored:,} of it")
    return array


def is_text(array: Any) -> bool:
    """Return True for an array of texts."""
    h5py = require("h5py", "data", "reading HDF5 files")
    return array.dtype.kind == "S" or h5py.check_string_dtype(array.dtype) is not None


def read_unit(array: Any) -> str:
    """Return the unit that an attribute of an array states, empty for none."""
    if not len(array.attrs):
        return ""
    for name in UNIT_ATTRIBUTES:
        value = array.attrs.get(name)
        if value is not None:
            return plain_unit(value.decode(errors="replace") if isinstance(value, bytes) else str(value))
    return ""


class GroupFiles(SystemFiles):
    """A system of DeePMD-kit in a group."""

    def __init__(self, group: Any, where: str) -> None:
        super().__init__(where)
        self.group = group

    def names(self) -> list[str]:
        """Return the names in the group, sorted."""
        return sorted(find_links(self.group, self.where))

    def read_text(self, name: str) -> list[str]:
        """Return the words or numbers of an array."""
        array = open_array(self.group, name, self.where)
        if array.shape is None or np.prod(array.shape) > LARGEST_ATOMS:
            raise DataError(f"{self.where}: {name} has shape {array.shape}")
        values = np.ravel(array[()])
        return [word.decode(errors="replace") if isinstance(word, bytes) else str(word) for word in values]

    def open_array(self, name: str) -> Any:
        """Return an array that stays in the file."""
        return open_array(self.group, name, self.where)

    def enter(self, name: str) -> SystemFiles:
        """Return the arrays of a group in it."""
        return GroupFiles(open_group(self.group, name, self.where), f"{self.where}/{name}")
