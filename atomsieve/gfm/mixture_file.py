"""`mixture.safetensors` of a gfm/ folder: the learned mixture of the heads, written and read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from atomsieve.errors import DataError, UsageError
from atomsieve.gfm.manifest import MIXTURE
from atomsieve.uncertainty.head_mixture import Mixture

_LARGEST = 64 << 20


def dump_mixture(mixture: Mixture) -> bytes:
    """Return the contents of `mixture.safetensors`."""
    arrays = {}
    for place, (weight, bias) in enumerate(mixture.maps):
        arrays[f"net.{2 * place}.weight"] = np.ascontiguousarray(weight)
        arrays[f"net.{2 * place}.bias"] = np.ascontiguousarray(bias)
    about = {"heads": mixture.heads, "inputs": mixture.inputs, "about": mixture.about}
    return bytes(save(arrays, {"mixture": json.dumps(about)}))  # one entry: the order of several is not the same twice


def read_mixture(folder: str | Path, heads: Sequence[str]) -> Mixture | None:
    """Read `mixture.safetensors` of a gfm/ folder; None if it has none.

    heads : names in the order of the manifest, which the file must agree with.

    Raises
    ------
    DataError
        in one line, if the file is damaged or of another ensemble.
    """
    path = Path(folder) / MIXTURE
    if not path.is_file():
        return None
    if path.stat().st_size > _LARGEST:
        raise DataError(f"{path} has {path.stat().st_size} bytes, more than any mixture ({_LARGEST}); copy it again")
    try:
        with safe_open(path, framework="numpy") as opened:
            about = json.loads((opened.metadata() or {})["mixture"])
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
        names, inputs, said = tuple(about["heads"]), str(about["inputs"]), dict(about["about"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a mixture ({error}); copy it again, or fit it anew") from error
    if names != tuple(heads):
        raise DataError(f"{path} mixes heads {', '.join(map(str, names))}, the ensemble has {', '.join(heads)}")
    wanted = [f"net.{2 * k}.{part}" for k in range(len(arrays) // 2) for part in ("weight", "bias")]
    if sorted(arrays) != sorted(wanted):
        raise DataError(f"{path} must hold {', '.join(wanted) or 'linear maps'}, got {', '.join(sorted(arrays))}")
    maps = tuple((arrays[f"net.{2 * k}.weight"], arrays[f"net.{2 * k}.bias"]) for k in range(len(arrays) // 2))
    try:
        return Mixture(names, maps, inputs, said)
    except (DataError, UsageError) as error:
        raise DataError(f"{path}: {error}; copy it again, or fit it anew") from None
