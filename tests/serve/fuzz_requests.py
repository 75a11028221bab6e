"""Coverage-guided fuzzing of requests: bytes become tensors, and what the engine makes of them must hold together.

The suite runs it for a moment. To run it for longer, with what it finds interesting kept in a folder:

    python -m tests.serve.fuzz_requests corpus/ -max_total_time=3600
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from atomsieve.remote.wire import INPUTS, OUTPUTS, request_arrays
from atomsieve.serve.model.engine import Engine
from atomsieve.serve.model.request import Refused
from atomsieve.serve.model.settings import Limits, Settings

KINDS = {"invalid", "unsupported", "too_large", "other_ensemble"}
ASKED = ("status", "energy", "forces", "stress", "energy_std", "in_domain", "head", "energy_members")
DTYPES = [np.dtype(n) for n in ("float64", "float32", "int64", "int32", "uint8")]
NUMBERS = (0.0, 1.0, -1.0, 0.1, 2.5, 29.0, 1e-300, 1e-3, 1e3, 1e9, 1e300, -1e300, np.nan, np.inf, -np.inf)
COUNTS = (0, 1, 2, 3, -1, 7, 2**31, 2**62, 2**63 - 1, -(2**63))
NARROW = Limits(structures=6, atoms=60, bytes=20_000, structure_atoms=40, structure_edges=20_000, edges=60_000)


def engine_of(predictor: Any) -> Engine:
    """Return an engine with narrow limits, which requests then reach."""
    return Engine(predictor, Settings(precision="fp64", limits=NARROW, max_atoms=30))


class Judge:
    """Gives an engine a strange request, now and then beside a good one, and checks the answers."""

    def __init__(self, engine: Engine, good: Any) -> None:
        self.engine, self._calls = engine, 0
        self._good = engine.read(request_arrays(good), {"head": "metal"}, set(ASKED))
        [self._truth] = engine([self._good])
        assert not isinstance(self._truth, Refused)

    def __call__(self, arrays: Mapping[str, Any], parameters: Mapping[str, Any], outputs: set[str]) -> str:
        """Return the kind of refusal, or "answered"."""
        request = self.engine.read(arrays, parameters, outputs)
        self._calls += 1
        strange, *rest = self.engine([request, self._good] if self._calls % 10 == 0 else [request])
        for good in rest:
            for name, values in self._truth.items():
                np.testing.assert_allclose(good[name], values, rtol=1e-8, atol=1e-8, err_msg=name)
        if isinstance(strange, Refused):
            assert strange.kind in KINDS, strange  # never "internal"
            assert strange.message and len(strange.message) < 2000 and "\n" not in strange.message
            return strange.kind
        structures, atoms = arrays["n_atoms"].shape[1], arrays["numbers"].shape[1]
        assert strange.keys() == outputs - {"description", "test_vector"}
        for name, values in strange.items():
            tensor = OUTPUTS[name]
            assert values.dtype == tensor.dtype and len(values) == (atoms if tensor.axis == "atom" else structures)
            assert values.ndim == 1 + len(tensor.trailing)
        if {"status", "energy", "forces"} <= outputs:
            well = strange["status"] == 0
            assert (np.isfinite(strange["energy"]) == well).all()
            of_atom = np.repeat(well, arrays["n_atoms"][0])
            assert (np.isfinite(strange["forces"]).all(1) == of_atom).all()
        return "answered"


def request_of(source: Any) -> tuple[dict[str, Any], dict[str, Any], set[str]]:
    """Turn bytes into a request that is right, or wrong in a few ways. source : an atheris.FuzzedDataProvider."""
    structures = source.ConsumeIntInRange(0, 4)
    counts = [source.ConsumeIntInRange(0, 5) for _ in range(structures)]
    sizes = {"structure": structures, "atom": sum(counts)}
    periodic = source.ConsumeBool()
    arrays = {}
    for name, tensor in INPUTS.items():
        how = source.ConsumeIntInRange(0, 60)
        if how == 0 or (tensor.optional and how > 3 and not (periodic if name in ("cell", "pbc") else how > 40)):
            continue
        shape = [1, sizes[tensor.axis], *tensor.trailing]
        if how == 1:
            shape[source.ConsumeIntInRange(0, len(shape) - 1)] = source.ConsumeIntInRange(0, 9)
        if how == 2:
            shape = [source.ConsumeIntInRange(0, 4) for _ in range(source.ConsumeIntInRange(0, 4))]
        dtype = DTYPES[source.ConsumeIntInRange(0, 4)] if how == 3 else tensor.dtype
        arrays[name] = _values(source, name, tuple(shape), dtype, counts)
    if source.ConsumeIntInRange(0, 20) == 0:
        arrays[source.ConsumeUnicodeNoSurrogates(6)] = np.zeros((1, 1))
    outputs = {name for name in ASKED if source.ConsumeBool()}
    parameters: dict[str, Any] = {}
    if source.ConsumeBool():
        parameters["head"] = source.PickValueInList([*["metal", "organic"] * 6, "", "none", 3, None, [1]])
    if source.ConsumeIntInRange(0, 9) == 0:
        parameters["alone"] = source.PickValueInList([True, False, 1, "yes"])
    if source.ConsumeIntInRange(0, 20) == 0:
        parameters[source.ConsumeUnicodeNoSurrogates(8)] = source.ConsumeInt(8)
    return arrays, parameters, outputs


def _values(source: Any, name: str, shape: tuple[int, ...], dtype: np.dtype, counts: list[int]) -> Any:
    usual = source.ConsumeIntInRange(0, 15) > 0
    if name == "n_atoms" and shape == (1, len(counts)) and usual:
        return np.array([counts], dtype)
    if dtype.kind == "f":
        numbers = list(NUMBERS[:6]) if usual else list(NUMBERS)
        picks = [source.PickValueInList(numbers) + 3.0 * source.ConsumeProbability() for _ in range(5)]
        steps = 2.7 * np.arange(int(np.prod(shape))).reshape(shape)
        values = np.resize(np.array(picks), shape) + (steps if source.ConsumeIntInRange(0, 3) else 0)
        if name == "cell" and shape[-2:] == (3, 3) and source.ConsumeIntInRange(0, 3):
            values = values * np.eye(3)
        return values.astype(dtype)
    allowed = list(COUNTS) if dtype.itemsize > 1 else [0, 1, 2, 8, 29, 255]
    if usual and name in ("pbc", "head", "numbers"):
        allowed = {"pbc": [0, 1], "head": [-1, 0, 1], "numbers": [29, 29, 8, 1]}[name]
    picks = [source.PickValueInList(allowed) for _ in range(5)]
    with np.errstate(all="ignore"):
        return np.resize(np.array(picks, np.int64), shape).astype(dtype)


def main() -> None:
    """Fuzz until the options of the command line say stop."""
    import atheris

    checked = ["atomsieve.serve.model.request", "atomsieve.graphs.crowding"]
    with atheris.instrument_imports(include=checked):
        import importlib

        for name in checked:
            importlib.reload(sys.modules[name])
        importlib.reload(sys.modules["atomsieve.serve.model.engine"])
    from pathlib import Path

    from atomsieve.predict import Predictor
    from tests.helpers import copper_oxides, tiny_gfm

    with TemporaryDirectory() as folder:
        predictor = Predictor.load(tiny_gfm(Path(folder) / "gfm", members=2), precision="fp64")
    engine_module = sys.modules["atomsieve.serve.model.engine"]
    globals()["Refused"] = engine_module.Refused
    judge = Judge(
        engine_module.Engine(predictor, Settings(precision="fp64", limits=NARROW, max_atoms=30)), copper_oxides(1)
    )

    def one(data: bytes) -> None:
        with np.errstate(all="ignore"):
            judge(*request_of(atheris.FuzzedDataProvider(data)))

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
