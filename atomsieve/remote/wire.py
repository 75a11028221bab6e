"""The table of tensors in a request and its answer; the server, its configuration and the clients derive from it.

A request is one packed set of structures. Every tensor has a first axis of length 1 in front of the shape given here,
so that the server may gather requests of different sizes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from atomsieve.predict.prediction import Prediction
from atomsieve.structures.batch import StructureBatch
from atomsieve.structures.fields import FIELDS

WIRE = 1
"""Version of this table; a client refuses a server of another one."""
TRITON_TYPES = {
    "float64": "FP64",
    "float32": "FP32",
    "int64": "INT64",
    "int32": "INT32",
    "uint8": "UINT8",
}
"""Names of dtypes in the KServe protocol."""

Axis = Literal["structure", "atom", "bytes"]


@dataclass(frozen=True)
class Tensor:
    """One tensor of a request or an answer, its leading axis of length 1 left out.

    Attributes
    ----------
    name, dtype, unit, doc : as in the field registry, where it is a field of a batch.
    axis : of the first axis: structures [S], atoms [N], or bytes.
    trailing : lengths of the other axes; -1 for the ensemble's own (members K, features F).
    optional : a request may lack it.
    want : properties of a prediction that it needs (`atomsieve.predict.prediction.PROPERTIES`).
    """

    name: str
    axis: Axis
    trailing: tuple[int, ...]
    dtype: np.dtype
    unit: str
    doc: str
    optional: bool = False
    want: frozenset[str] = frozenset()

    @property
    def datatype(self) -> str:
        """Name of the dtype in the KServe protocol."""
        return TRITON_TYPES[self.dtype.name]

    @property
    def symbol(self) -> str:
        """The shape as documented, e.g. `[N,3]`; K members, F features."""
        first = {"structure": "S", "atom": "N", "bytes": "bytes"}[self.axis]
        own = "F" if self.name == "features" else "K"
        return "[" + ",".join([first, *(own if n == -1 else str(n) for n in self.trailing)]) + "]"

    @property
    def dims(self) -> list[int]:
        """Shape without the leading axis of length 1."""
        return [-1, *self.trailing]


INTEGERS = np.dtype("int32")
"""Dtype of integers from clients. A server truncates JSON integers to the dtype silently: in a byte, 300 becomes 44."""


def _of_field(name: str, dtype: np.dtype | None = None, *, optional: bool = False) -> Tensor:
    field = FIELDS[name]
    axis: Axis = "atom" if field.axis == "atom" else "structure"
    return Tensor(name, axis, field.trailing, dtype or field.disk, field.unit, field.doc, optional)


INPUTS: dict[str, Tensor] = {
    t.name: t
    for t in (
        Tensor("n_atoms", "structure", (), np.dtype("int64"), "", "atoms of each structure; their sum is N"),
        _of_field("numbers", INTEGERS),
        _of_field("positions"),
        _of_field("cell", optional=True),
        _of_field("pbc", INTEGERS, optional=True),
        _of_field("charge", optional=True),
        _of_field("spin", optional=True),
        Tensor(
            "head",
            "structure",
            (),
            FIELDS["head"].dtype,
            "",
            "index of the head in the model's list; -1 takes the one that the request's parameter `head` names, or the "
            "default",
            optional=True,
        ),
    )
}
"""Tensors of a request. `cell` and `pbc` come together or not at all; without them nothing is periodic."""


def _out(name: str, axis: Axis, trailing: tuple[int, ...], dtype: str, unit: str, doc: str, *want: str) -> Tensor:
    return Tensor(name, axis, trailing, np.dtype(dtype), unit, doc, want=frozenset(want))


OUTPUTS: dict[str, Tensor] = {
    t.name: t
    for t in (
        _out("status", "structure", (), "uint8", "", "0 if there is a result, else why not"),
        _out("head", "structure", (), "int32", "", "index of the head that was used"),
        _out("energy", "structure", (), "float64", "eV", "mean of the members"),
        _out("energy_std", "structure", (), "float64", "eV", "unbiased standard deviation over members", "spread"),
        _out("sigma_energy", "structure", (), "float64", "eV", "calibrated standard error", "spread"),
        _out("interval_energy", "structure", (), "float64", "eV", "half width of the 90 % interval", "spread"),
        _out("outside", "structure", (), "uint8", "", "bits: why it is unlike what the head was trained on"),
        _out("in_domain", "structure", (), "uint8", "", "1 if there is a result and no reason against it"),
        _out("distance", "structure", (), "float64", "", "from the training data in feature space, 1 at the limit"),
        _out("forces", "atom", (3,), "float64", "eV/Angstrom", "minus the gradient of the energy", "forces"),
        _out(
            "forces_std",
            "atom",
            (3,),
            "float64",
            "eV/Angstrom",
            "standard deviation over members",
            "forces",
            "force_spread",
        ),
        _out(
            "sigma_forces",
            "atom",
            (),
            "float64",
            "eV/Angstrom",
            "calibrated standard error of a component",
            "forces",
            "force_spread",
        ),
        _out(
            "interval_forces",
            "atom",
            (),
            "float64",
            "eV/Angstrom",
            "half width of its 90 % interval",
            "forces",
            "force_spread",
        ),
        _out("stress", "structure", (3, 3), "float64", "eV/Angstrom^3", "ASE sign", "stress"),
        _out("energy_members", "structure", (-1,), "float64", "eV", "of each member", "energy_members"),
        _out("forces_members", "atom", (-1, 3), "float64", "eV/Angstrom", "of each member", "forces", "members"),
        _out("atom_energies", "atom", (), "float64", "eV", "the atoms' shares in the energy", "energies"),
        _out("features", "atom", (-1,), "float32", "", "what the first member's encoder gives each atom", "features"),
        _out("description", "bytes", (), "uint8", "", "JSON: what answers, asked for with an empty request"),
        _out("test_vector", "bytes", (), "uint8", "", "JSON: structures and what the ensemble says of them in FP64"),
    )
}
"""Tensors of an answer; outputs that were not requested are not computed."""

ABOUT = ("description", "test_vector")
"""Outputs about the model, not about structures."""
MEMBERS_FIRST = ("energy_members", "forces_members")
"""Arrays of a prediction whose first axis is members; on the wire it is the second."""


def available_outputs(outputs: Collection[str], kind: str) -> list[str]:
    """Return the names of the outputs that a predictor can give, in the order of the table.

    outputs, kind : of the predictor.
    """
    lacking = {name for name in ("forces", "stress", "energies") if name not in outputs}
    apart = "forces_members" in outputs
    if kind == "shallow" and not apart:  # whose export gives mean forces alone
        lacking.add("force_spread")
    return [n for n, t in OUTPUTS.items() if not t.want & lacking and (apart or n != "forces_members")]


def required_properties(names: Iterable[str]) -> frozenset[str]:
    """Return the properties of a prediction that the outputs `names` need."""
    return frozenset({"energy"}.union(*(OUTPUTS[name].want for name in names)))


def outputs_for(want: Collection[str], kind: str) -> list[str]:
    """Return the outputs that a predictor of this kind needs to answer `want`, in the order of the table."""
    asked = set(want) | {"energy"}
    if "spread" in asked and kind == "deep":
        asked.add("force_spread")
    if "members" in asked:
        asked.add("energy_members")
    return [name for name, t in OUTPUTS.items() if name not in (*ABOUT, "head") and t.want <= asked]


def request_arrays(batch: StructureBatch) -> dict[str, NDArray[Any]]:
    """Return the tensors [1,...] of a request for a batch."""
    arrays: dict[str, NDArray[Any]] = {"n_atoms": batch.counts, "numbers": batch.numbers, "positions": batch.positions}
    if batch.pbc.any() or batch.cell.any():
        arrays |= {"cell": batch.cell, "pbc": batch.pbc}
    for name in ("charge", "spin"):
        values = getattr(batch, name)
        if values is not None and not np.isnan(values).all():
            arrays[name] = values
    return {name: np.ascontiguousarray(values, INPUTS[name].dtype)[None] for name, values in arrays.items()}


def prediction_arrays(prediction: Prediction) -> dict[str, NDArray[Any]]:
    """Return the arrays of a prediction as they go over the wire, without the leading axis."""
    found = {}
    for name, values in prediction.arrays().items():
        found[name] = np.moveaxis(values, 0, 1) if name in MEMBERS_FIRST else values
    return found


def prediction_from_arrays(arrays: Mapping[str, NDArray[Any]], head: str, calibrated: frozenset[str]) -> Prediction:
    """Return the prediction in arrays of the wire, given without the leading axis."""
    known = {f.name for f in fields(Prediction)} - {"head"}
    found = {name: values for name, values in arrays.items() if name in known}
    for name in MEMBERS_FIRST:
        if name in found:
            found[name] = np.ascontiguousarray(np.moveaxis(found[name], 1, 0))
    found["in_domain"] = found["in_domain"].astype(bool)
    return Prediction(head=head, calibrated=calibrated, **found)
