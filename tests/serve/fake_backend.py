"""What Triton's Python backend lends a model, in this process: tensors, responses, errors, counters."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np


class Lent:
    """A tensor of a request, as the backend lends it: by DLPack alone."""

    def __init__(self, name: str, values: Any) -> None:
        self._name, self._values = name, values

    def name(self) -> str:
        """Return its name."""
        return self._name

    def __dlpack__(self, **how: Any) -> Any:
        """Lend the memory."""
        return self._values.__dlpack__(**how)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Say that it is the host's."""
        return (1, 0)


class Asked:
    """A request."""

    def __init__(self, arrays: dict[str, Any], outputs: Any, parameters: Any = "{}", cancelled: bool = False) -> None:
        self._arrays, self._outputs, self._cancelled = arrays, outputs, cancelled
        self._parameters = parameters if isinstance(parameters, str) else json.dumps(parameters)

    def inputs(self) -> list[Lent]:
        """Return its tensors."""
        return [Lent(name, values) for name, values in self._arrays.items()]

    def requested_output_names(self) -> list[str]:
        """Return what it asks for."""
        return list(self._outputs)

    def parameters(self) -> str:
        """Return its parameters, as JSON."""
        return self._parameters

    def is_cancelled(self) -> bool:
        """Say whether its client gave it up."""
        return self._cancelled


class Error(Exception):
    """An error for a client."""

    INTERNAL, UNSUPPORTED, CANCELLED, INVALID_ARG = "internal", "unsupported", "cancelled", "invalid"

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.message, self.code = message, code


class Response:
    """An answer: tensors by name, or an error."""

    def __init__(self, tensors: Any = (), error: Error | None = None) -> None:
        self.tensors, self.error = dict(tensors), error


class Family:
    """Counters; `counts` holds them all, by name and labels."""

    counts: ClassVar[Counter[Any]] = Counter()
    COUNTER = 0

    def __init__(self, name: str, description: str, kind: int) -> None:
        self._name = name

    def Metric(self, labels: dict[str, str]) -> Any:
        """Return a counter."""
        key = (self._name, *sorted(labels.items()))

        def increment(by: float) -> None:
            Family.counts[key] += by

        return SimpleNamespace(increment=increment)


def backend() -> Any:
    """Return a module like the backend's own."""
    Family.counts = Counter()
    tensor = SimpleNamespace(from_dlpack=lambda name, values: (name, np.from_dlpack(values)))
    return SimpleNamespace(Tensor=tensor, TritonError=Error, InferenceResponse=Response, MetricFamily=Family)
