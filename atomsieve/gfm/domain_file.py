"""`domain.safetensors` of a gfm/ folder: the domains of the heads, written and read with nothing in it trusted."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from atomsieve.errors import DataError
from atomsieve.gfm.manifest import DOMAIN
from atomsieve.models.elements import MAX_NUMBER
from atomsieve.uncertainty.domain import HeadDomain
from atomsieve.uncertainty.matter import MatterRange

_FAR = 1e6
_LARGEST = 64 << 20
_MOST_LANDMARKS, _MOST_AXES = 16384, 256

_ARRAYS: dict[str, tuple[Any, int]] = {
    "elements": (np.uint8, 1),
    "seen_in": (np.int32, 1),
    "pairs": (np.uint8, 2),
    "closest": (np.float32, 1),
    "structures": (np.int32, 1),
    "projection": (np.float32, 2),
    "landmarks": (np.float32, 2),
    "owner": (np.uint8, 1),
    "numbers": (np.float64, 1),
}
_MATTER: dict[str, tuple[Any, int]] = {"volumes": (np.float32, 1), "bonds": (np.float32, 1), "ranges": (np.float64, 1)}
"""Arrays that fits of earlier versions lack; a head has all of them or none."""
_NUMBERS = ("paired", "contact", "kin", "expected", "closer", "limit", "fitted", "held")


def dump_domain(domains: Mapping[str, HeadDomain], heads: Sequence[str]) -> bytes:
    """Return the contents of `domain.safetensors`; arrays are called by the head's place in `heads`."""
    arrays: dict[str, NDArray[Any]] = {}
    for k, name in enumerate(heads):
        if name in domains:
            found = domains[name]
            values = {f.name: getattr(found, f.name) for f in fields(found)}
            values["numbers"] = np.array([values[n] for n in _NUMBERS], np.float64)
            kinds = dict(_ARRAYS)
            if found.matter is not None:
                kinds |= _MATTER
                values |= vars(found.matter)
            arrays |= {f"{k}/{n}": np.ascontiguousarray(values[n], kind) for n, (kind, _) in kinds.items()}
    return bytes(save(arrays))


def read_domain(folder: str | Path, heads: Sequence[str], width: int) -> dict[str, HeadDomain]:
    """Read `domain.safetensors` of a gfm/ folder; heads without a fit are left out.

    heads : names in the order of the manifest; width : number of features F.

    Raises
    ------
    DataError
        in one line, if the file is damaged or holds values out of range; nothing in it is trusted.
    """
    path = Path(folder) / DOMAIN
    if not path.is_file():
        return {}
    if path.stat().st_size > _LARGEST:
        raise DataError(f"{path} has {path.stat().st_size} bytes, more than any domain ({_LARGEST}); copy it again")
    try:
        arrays = load(path.read_bytes())
    except (SafetensorError, ValueError, KeyError, struct.error) as error:
        raise DataError(f"{path} is not a safetensors file ({error}); copy it again") from error
    out = {}
    for k, name in enumerate(heads):
        own = {n.removeprefix(f"{k}/"): arrays.pop(n) for n in list(arrays) if n.startswith(f"{k}/")}
        if own:
            try:
                out[name] = _check_head(own, width)
            except DataError as error:
                raise DataError(f"{path}: head {name!r}: {error}; copy it again, or fit it anew") from None
    if arrays:
        odd = sorted(arrays)[0]
        raise DataError(f"{path} holds {odd!r}, which is no head's (0 to {len(heads) - 1}); copy it again")
    return out


def _check_head(arrays: dict[str, NDArray[Any]], width: int) -> HeadDomain:
    """Return the domain of a head; DataError names an array that is wrong."""
    wanted = _ARRAYS | (_MATTER if {*arrays} & {*_MATTER} else {})
    odd = sorted({*arrays} ^ {*wanted})
    if odd:
        raise DataError(f"{odd[0]} is {'missing' if odd[0] in wanted else 'unknown'}")
    for name, (kind, axes) in wanted.items():
        found = arrays[name]
        if found.dtype != kind or found.ndim != axes:
            raise DataError(f"{name} must be {np.dtype(kind).name} of {axes} axes, got {found.dtype} {found.shape}")
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            raise DataError(f"{name} holds numbers that are not finite")
    pairs, landmarks, numbers = arrays["pairs"], arrays["landmarks"], arrays["numbers"]
    axes = landmarks.shape[1]
    shapes = {
        "seen_in": (len(arrays["elements"]),),
        "pairs": (len(pairs), 2),
        "closest": (len(pairs),),
        "structures": (len(pairs),),
        "numbers": (len(_NUMBERS),),
        "projection": (width, axes),
        "owner": (len(landmarks),),
    }
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise DataError(f"{name} must have shape {shape}, got {arrays[name].shape}")
    if not (0 < len(landmarks) <= _MOST_LANDMARKS and 0 < axes <= _MOST_AXES):
        raise DataError(f"landmarks must be [1-{_MOST_LANDMARKS},1-{_MOST_AXES}], got {landmarks.shape}")
    for name in ("elements", "pairs", "owner"):
        found = arrays[name]
        if found.size and not (found.min() >= 1 and found.max() <= MAX_NUMBER):
            raise DataError(f"{name} must be atomic numbers from 1 to {MAX_NUMBER}, got {found.min()} to {found.max()}")
    if (np.diff(arrays["owner"].astype(int)) < 0).any() or (pairs[:, 0] > pairs[:, 1]).any():
        raise DataError("owner must be sorted, and the first of a pair not above the second")
    if any((arrays[name] <= 0).any() for name in ("closest", "structures", "seen_in")):
        raise DataError("closest, structures and seen_in must be positive")
    paired, contact, kin, expected, closer, limit, fitted, held = numbers.tolist()
    inside = 0 <= contact < 2 and 0 <= kin <= MAX_NUMBER and expected >= 0 and 0 <= closer <= 1 and 0 < limit < _FAR
    if not (inside and 1 <= paired < 2**53 and 1 <= fitted < 2**53 and 0 <= held < 2**53):
        raise DataError(f"{', '.join(_NUMBERS)} are out of range: {', '.join(f'{x:g}' for x in numbers)}")
    plain = {n: arrays[n] for n in _ARRAYS if n != "numbers"}
    return HeadDomain(
        **plain,
        paired=int(paired),
        contact=contact,
        kin=int(kin),
        expected=expected,
        closer=closer,
        limit=limit,
        fitted=int(fitted),
        held=int(held),
        matter=_check_matter(arrays),
    )


def _check_matter(arrays: dict[str, NDArray[Any]]) -> MatterRange | None:
    """Return the usual densities and coordinations of a head; None where its fit has none."""
    if "ranges" not in arrays:
        return None
    found = MatterRange(*(arrays[name] for name in _MATTER))
    size = MAX_NUMBER + 1
    if found.volumes.shape != (size,) or found.bonds.shape != (size,) or found.ranges.shape != (4,):
        raise DataError(f"volumes and bonds must have shape ({size},), ranges (4,)")
    if min(found.volumes.min(), found.bonds.min()) <= 0:
        raise DataError("volumes and bonds must be positive")
    low, high, least, most = found.ranges.tolist()
    if not (low < high and least < most):
        raise DataError(f"ranges must be two intervals, got {low:g} to {high:g} and {least:g} to {most:g}")
    return found
