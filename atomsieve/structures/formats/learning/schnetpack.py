"""SchNetPack's data sets: ASE databases whose metadata state the units of positions and of each property."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atomsieve.errors import DataError, UsageError
from atomsieve.structures.formats.learning.units_of_keys import choose_units
from atomsieve.structures.units import Units


def read_schnetpack_units(metadata: Mapping[str, Any], where: str) -> Units:
    """Return the units that the metadata of an ASE database state, as SchNetPack writes them; none without such keys.

    `_distance_unit` is that of positions and cells, `_property_unit_dict` that of each property by name. Atomic
    references (`atomrefs`) are not taken off the stored values, neither there nor here.

    Raises
    ------
    DataError
        if the metadata cannot be understood.
    """
    distance, properties = metadata.get("_distance_unit"), metadata.get("_property_unit_dict")
    if distance is None and properties is None:
        return Units()
    if not isinstance(properties or {}, Mapping):
        raise DataError(f"{where}: _property_unit_dict of the metadata is no table of units by property")
    table = {str(name): unit for name, unit in (properties or {}).items()}
    try:
        return choose_units(table, distance, "the metadata of SchNetPack")
    except UsageError as error:
        raise DataError(
            f"{where}: the metadata state units that are not known ({error}); rewrite them there"
        ) from error
