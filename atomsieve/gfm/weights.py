"""The weights of an ensemble as files: one for each member, and one for the parameters that all members share."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from atomsieve.errors import DataError
from atomsieve.models.ensemble import Ensemble

WEIGHTS = "weights.safetensors"
SHARED = "shared"
"""Folder of the one encoder of a shallow ensemble; the members' own files then hold their decoders."""


def write_weights(folder: Path, ensemble: Ensemble, places: Sequence[str]) -> None:
    """Write FP32 weights to `folder/<place>/weights.safetensors`, a place for each member."""
    state = {name: t.detach().cpu().float() for name, t in ensemble.state_dict().items()}
    parts = {place: (k, False) for k, place in enumerate(places)}
    if ensemble.shallow:
        parts[SHARED] = (0, True)
    for place, (row, shared) in parts.items():
        (folder / place).mkdir(parents=True, exist_ok=True)
        own = {name: t[row].contiguous() for name, t in state.items() if ensemble.is_shared(name) == shared}
        save_file(own, str(folder / place / WEIGHTS))


def read_weights(folder: Path, ensemble: Ensemble, places: Sequence[str], listed: Collection[str]) -> None:
    """Put the weights that `write_weights` wrote into an ensemble.

    listed : names of the files that the manifest vouches for.

    Raises
    ------
    DataError
        naming the file that is not listed, damaged or of the wrong shape.
    """
    expected = {name: t.shape[1:] for name, t in ensemble.state_dict().items()}
    shared = {name: shape for name, shape in expected.items() if ensemble.is_shared(name)}
    own = {name: shape for name, shape in expected.items() if name not in shared}
    states = [_read(folder, f"{place}/{WEIGHTS}", own, listed) for place in places]
    found = {name: torch.stack([state[name] for state in states]) for name in own}
    if shared:
        once = _read(folder, f"{SHARED}/{WEIGHTS}", shared, listed)
        found |= {name: t.unsqueeze(0) for name, t in once.items()}
    ensemble.load_state_dict(found)


def _read(folder: Path, name: str, expected: dict[str, torch.Size], listed: Collection[str]) -> dict[str, Tensor]:
    if name not in listed:
        raise DataError(f"{folder}: {name} is not listed in the manifest; the folder is damaged, copy it again")
    try:
        state = load_file(str(folder / name))
    except SafetensorError as error:
        raise DataError(f"{folder}: {name} is not a safetensors file ({error})") from error
    if {n: t.shape for n, t in state.items()} != expected:
        odd = sorted(n for n in {*state, *expected} if n not in state or state[n].shape != expected.get(n))
        raise DataError(f"{folder}: {name} does not fit the model: {', '.join(odd[:5])}")
    return state
