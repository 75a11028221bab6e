"""Requests from untrusted clients: every tensor is checked before anything is computed or allocated from it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import unknown
from atomsieve.remote.wire import ABOUT, INPUTS
from atomsieve.serve.model.settings import Limits
from atomsieve.structures.batch import StructureBatch

PARAMETERS = ("head", "alone", "ensemble_id")
"""Parameters of a request: the head of all its structures; whether it is computed separately; the required ensemble."""

PARAMETER_BYTES = 16_384
"""Length of all parameters of a request, as JSON; three names and an identity are far shorter."""
SHOWN = 64
"""Characters of a name of the client's own that an error repeats."""


@dataclass(frozen=True)
class Refused:
    """Why a request has no answer.

    kind : "invalid" (the request is wrong), "unsupported" (this model cannot), "too_large", "other_ensemble",
        "cancelled" or "internal".
    """

    kind: str
    message: str


class RequestError(Exception):
    """Raised by a check; ends up as `Refused`."""

    def __init__(self, message: str, kind: str = "invalid") -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Request:
    """A request that passed all checks.

    batch : its structures. heads : [S] index of the head of each. outputs : requested outputs of structures;
    about : requested outputs of the model. alone : it is evaluated separately, so that its last bits do not depend on
    other requests. edges : [S], estimated.
    """

    batch: StructureBatch
    heads: NDArray[np.int32]
    outputs: frozenset[str]
    about: frozenset[str]
    alone: bool
    edges: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


def read_parameters(text: str | None) -> dict[str, Any]:
    """Return the parameters of a request, which come as a JSON object.

    Raises
    ------
    RequestError
        if they are too long to be looked at; ValueError if they are none.
    """
    if text is not None and len(text) > PARAMETER_BYTES:
        raise RequestError(
            f"the parameters have {len(text)} characters, allowed are {PARAMETER_BYTES}; those that are known are "
            f"{', '.join(PARAMETERS)}"
        )
    return dict(json.loads(text or "{}"))


def read_request(
    arrays: Mapping[str, NDArray[Any]],
    parameters: Mapping[str, Any],
    outputs: Collection[str],
    *,
    heads: Sequence[str],
    default_head: str,
    ensemble_id: str,
    limits: Limits,
) -> Request | Refused:
    """Check a request and return its structures, or why it is refused.

    arrays : tensors [1,...] by name. parameters : of the request. outputs : names that are asked for.
    heads, default_head, ensemble_id, limits : of the model.
    """
    try:
        return _read(arrays, parameters, outputs, heads, default_head, ensemble_id, limits)
    except RequestError as error:
        return Refused(error.kind, str(error))


def _read(
    arrays: Mapping[str, NDArray[Any]],
    parameters: Mapping[str, Any],
    outputs: Collection[str],
    heads: Sequence[str],
    default_head: str,
    ensemble_id: str,
    limits: Limits,
) -> Request:
    head, alone = _parameters(parameters, heads, default_head, ensemble_id)
    size = sum(a.nbytes for a in arrays.values())
    if size > limits.bytes:
        raise RequestError(
            f"the request has {size} bytes, allowed are {limits.bytes}; send fewer structures at once", "too_large"
        )
    flat = {name: _check_tensor(name, values) for name, values in arrays.items()}
    missing = [name for name, t in INPUTS.items() if not t.optional and name not in flat]
    if missing:
        raise RequestError(f"input {missing[0]!r} is missing; a request needs n_atoms, numbers and positions")
    counts = _counts(flat["n_atoms"], len(flat["numbers"]), limits)
    structures, atoms = len(counts), len(flat["numbers"])
    for name, values in flat.items():
        first = atoms if INPUTS[name].axis == "atom" else structures
        if len(values) != first:
            expected = f"atoms of numbers, N = {first}" if INPUTS[name].axis == "atom" else f"n_atoms, S = {first}"
            raise RequestError(f"{name} has {len(values)} entries, but must have as many as {expected}")
    batch = StructureBatch(
        ptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        numbers=_check_range("numbers", flat["numbers"], 255).astype(np.uint8),
        positions=flat["positions"],
        id=np.arange(structures, dtype=np.int64),
        charge=_check_finite("charge", flat),
        spin=_check_finite("spin", flat),
        **_cell(flat, structures),
    )
    about = frozenset(outputs) & frozenset(ABOUT)
    return Request(batch, _heads(flat.get("head"), head, heads, structures), frozenset(outputs) - about, about, alone)


def _parameters(
    parameters: Mapping[str, Any], heads: Sequence[str], default_head: str, ensemble_id: str
) -> tuple[int, bool]:
    """Return the index of the head of the request, and whether it is computed separately."""
    given = {name: value for name, value in parameters.items() if name in PARAMETERS}
    wrong = [name for name in parameters if name not in PARAMETERS and not name.startswith(("triton_", "sequence_"))]
    if wrong:
        raise RequestError(str(unknown("parameter", wrong[0][:SHOWN], PARAMETERS)))
    asked = given.get("ensemble_id")
    if asked is not None and asked != ensemble_id:
        raise RequestError(
            f"this server holds ensemble {ensemble_id[:12]}, the request is for {str(asked)[:12]}; connect anew",
            "other_ensemble",
        )
    head = given.get("head", default_head)
    if not isinstance(head, str) or head not in heads:
        raise RequestError(str(unknown("head", str(head)[:SHOWN], heads)))
    alone = given.get("alone", False)
    if not isinstance(alone, bool):
        raise RequestError(f"parameter alone must be true or false, got {str(alone)[:SHOWN]!r}")
    return list(heads).index(head), alone


def _check_tensor(name: str, values: NDArray[Any]) -> NDArray[Any]:
    """Return a copy of a tensor without its leading axis, of the registry's dtype and trailing shape."""
    if name not in INPUTS:
        raise RequestError(str(unknown("input", name[:SHOWN], INPUTS)))
    tensor = INPUTS[name]
    if values.dtype != tensor.dtype:
        raise RequestError(f"{name} must be {tensor.datatype}, got {values.dtype}")
    shape = list(values.shape)
    if len(shape) != 2 + len(tensor.trailing) or tuple(shape[2:]) != tensor.trailing:
        raise RequestError(f"{name} must have shape {[1, *tensor.dims]}, got {shape}")
    if shape[0] != 1:
        raise RequestError(
            f"the first axis of {name} must be 1, got {shape[0]}: a request is one packed set of structures"
        )
    return np.array(values[0], copy=True, order="C")


def _counts(counts: NDArray[np.int64], atoms: int, limits: Limits) -> NDArray[np.int64]:
    """Return the atoms of each structure, which are as many as there are atoms."""
    if len(counts) > limits.structures:
        raise RequestError(
            f"the request has {len(counts)} structures, allowed are {limits.structures}; split it", "too_large"
        )
    if atoms > limits.atoms:
        raise RequestError(f"the request has {atoms} atoms, allowed are {limits.atoms}; split it", "too_large")
    if len(counts) and (counts.min() < 0 or counts.max() > atoms):
        bad = int(counts[(counts < 0) | (counts > atoms)][0])
        raise RequestError(f"n_atoms holds {bad}, allowed are 0 to {atoms}, the atoms of the request")
    if counts.sum() != atoms:
        raise RequestError(f"n_atoms adds up to {int(counts.sum())} atoms, but numbers has {atoms}")
    return counts


def _cell(flat: Mapping[str, NDArray[Any]], structures: int) -> dict[str, NDArray[Any]]:
    """Return cell [S,3,3] and pbc [S,3], which come together or not at all."""
    if ("cell" in flat) != ("pbc" in flat):
        there, lacking = ("cell", "pbc") if "cell" in flat else ("pbc", "cell")
        raise RequestError(f"{there} is given without {lacking}; give both, or neither for structures without a cell")
    if "cell" not in flat:
        return {"cell": np.zeros((structures, 3, 3)), "pbc": np.zeros((structures, 3), bool)}
    return {"cell": flat["cell"], "pbc": _check_range("pbc", flat["pbc"], 1).astype(bool)}


def _check_range(name: str, values: NDArray[np.int32], most: int) -> NDArray[np.int32]:
    """Return values that are 0 to `most`."""
    if values.size and (values.min() < 0 or values.max() > most):
        bad = int(values[(values < 0) | (values > most)].flat[0])
        raise RequestError(f"{name} holds {bad}, allowed are 0 to {most}")
    return values


def _check_finite(name: str, flat: Mapping[str, NDArray[Any]]) -> NDArray[Any] | None:
    """Return charge or spin [S]; NaN where none is given."""
    values = flat.get(name)
    if values is not None and np.isinf(values).any():
        raise RequestError(f"{name} must be finite, or NaN where it is not given; got inf")
    return values


def _heads(given: NDArray[np.int32] | None, head: int, heads: Sequence[str], structures: int) -> NDArray[np.int32]:
    """Return the index of the head of each structure [S]."""
    if given is None:
        return np.full(structures, head, np.int32)
    if len(given) and (given.min() < -1 or given.max() >= len(heads)):
        bad = int(given[(given < -1) | (given >= len(heads))][0])
        raise RequestError(
            f"head holds {bad}, allowed are 0 to {len(heads) - 1} ({', '.join(heads[:16])}), or -1 for the request's"
        )
    return np.where(given == -1, np.int32(head), given).astype(np.int32)
