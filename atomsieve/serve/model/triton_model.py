"""The model that Triton's Python backend runs: tensors in and out, metrics and log lines around an `Engine`."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from atomsieve.remote.test_vector import compare_test_vector, read_test_vector, round_error
from atomsieve.remote.wire import available_outputs
from atomsieve.serve.model.cpu_quota import choose_threads, count_instances
from atomsieve.serve.model.engine import Arrays, Engine, Work, describe_model, log_internal_error
from atomsieve.serve.model.request import Refused, Request, RequestError, read_parameters
from atomsieve.serve.model.settings import GFM, Settings
from atomsieve.serve.model.triton_tensors import json_tensor, pack_tensor, probe_dlpack

CODES = {"internal": "INTERNAL", "unsupported": "UNSUPPORTED", "cancelled": "CANCELLED"}
"""Error codes of Triton by kind of refusal; every other kind is INVALID_ARG, which is of the 400 class."""

SIGN_OF_LIFE = 0.5
"""Seconds of work between log lines `working`."""
BUCKETS = {
    "requests": (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, math.inf),
    "structures": (0.0, *(4.0**k for k in range(9)), math.inf),
}
"""Upper ends of the buckets of batch sizes."""


def log(event: str, **facts: Any) -> None:
    """Write one JSON line; the server's supervisor passes it on."""
    line = {"time": round(time.time(), 3), "event": event, **facts}
    print(json.dumps(line, default=str), file=sys.stderr, flush=True)


def refusal_response(pb: Any, refused: Refused) -> Any:
    """Return the error response of the Python backend `pb` for a refused request."""
    code = getattr(pb.TritonError, CODES.get(refused.kind, "INVALID_ARG"))
    return pb.InferenceResponse(error=pb.TritonError(refused.message, code))


class JsonLines(logging.Handler):
    """Writes log records of the package, tracebacks included, as JSON lines."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        facts = {"level": record.levelname.lower(), "text": record.getMessage(), "where": record.name}
        if record.exc_info is not None:
            facts["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        log("log", **facts)


class TritonPythonModel:
    """One instance of a served ensemble."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the ensemble and compare it with its test vector; a model that fails this is not loaded."""
        import triton_python_backend_utils as pb

        self._pb = pb
        logging.basicConfig(handlers=[JsonLines()], level=logging.WARNING)
        began = time.perf_counter()
        folder = Path(args["model_repository"]) / args["model_version"]
        self.name = args["model_name"]
        self.settings = Settings.read(folder)
        predictor = load_predictor(
            folder, self.settings, args["model_instance_kind"], args["model_instance_device_id"], count_instances(args)
        )
        self._last_sign = time.monotonic()
        self.engine = Engine(predictor, self.settings, self._progress)
        self.given = available_outputs(predictor.capabilities.outputs, predictor.kind)
        vector = read_test_vector(folder / GFM)
        worst = compare_test_vector(vector, self.engine.answer_one, predictor.precision, self.given)
        self._about = {
            "description": json_tensor(describe_model(predictor, self.settings, self.given)),
            "test_vector": json_tensor(vector),
        }
        probe_dlpack(pb)
        self._metrics = ModelMetrics(pb, self.name)
        log(
            "loaded",
            model=self.name,
            instance=args["model_instance_name"],
            ensemble_id=predictor.ensemble_id,
            backend=predictor.backend,
            precision=predictor.precision,
            device=str(predictor.device),
            error_of_allowed=round_error(worst),
            seconds=round(time.perf_counter() - began, 3),
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests of a dynamic batch; each has its own answer or its own error."""
        self._last_sign = time.monotonic()
        try:
            read = [self._read(request) for request in requests]
            answers = self.engine(read)
            work = self.engine.work
            self._metrics.add(work, len(requests))
            log(
                "batch",
                model=self.name,
                requests=len(requests),
                structures=work.structures,
                atoms=work.atoms,
                evaluations=work.evaluations,
                seconds=round(work.seconds, 6),
                status=dict(work.status),
                errors=dict(work.errors),
            )
            return [self._response(r, a) for r, a in zip(read, answers, strict=True)]
        except Exception:  # an exception here would go to every client of the batch, with its traceback
            refused = self._internal()
            return [self._response(refused, refused) for _ in requests]

    def _progress(self) -> None:
        """Log at intervals that a long call is running; the supervisor reloads a model that stays silent."""
        now = time.monotonic()
        if now - self._last_sign > SIGN_OF_LIFE:
            self._last_sign = now
            log("working", model=self.name, structures=self.engine.work.structures)

    def finalize(self) -> None:
        """Log that the instance ends."""
        log("unloaded", model=self.name)

    # -- tensors ---------------------------------------------------------------------------------------------------

    def _read(self, request: Any) -> Request | Refused:
        if request.is_cancelled():
            return Refused("cancelled", "the client gave the request up")
        try:
            arrays = {t.name(): np.from_dlpack(t) for t in request.inputs()}
            parameters = read_parameters(request.parameters())
        except RequestError as error:
            return Refused(error.kind, str(error))
        except Exception as error:  # an unreadable tensor is a fault of this request alone
            return Refused("invalid", f"the tensors cannot be read ({type(error).__name__}: {error})")
        names = set(request.requested_output_names())
        if names == {*self.given, *self._about}:  # none was named: all outputs of structures
            names -= self._about.keys()
        try:
            return self.engine.read(arrays, parameters, names)
        except Exception:  # unexpected; it must fail this request alone
            return log_internal_error()

    def _response(self, request: Request | Refused, answer: Arrays | Refused) -> Any:
        pb = self._pb
        if isinstance(request, Request) and not isinstance(answer, Refused):
            arrays = {**answer, **{name: self._about[name] for name in request.about}}
            try:
                return pb.InferenceResponse([pb.Tensor.from_dlpack(n, pack_tensor(a)) for n, a in arrays.items()])
            except Exception:  # e.g. no shared memory for so large an answer: the others may fit
                answer = self._internal()
        refused = answer if isinstance(answer, Refused) else request
        assert isinstance(refused, Refused)
        return refusal_response(pb, refused)

    def _internal(self) -> Refused:
        """Log and count the current exception; return the refusal for the client."""
        refused = log_internal_error()
        self._metrics.count_error(refused.kind)
        return refused


class ModelMetrics:
    """Prometheus counters of a model, on the server's metrics page."""

    def __init__(self, pb: Any, model: str) -> None:
        self._model = model
        self._known: dict[tuple[str, str], Any] = {}
        counter = pb.MetricFamily.COUNTER
        self._families = {
            name: pb.MetricFamily(name=f"atomsieve_{name}_total", description=text, kind=counter)
            for name, text in {
                "requests": "Requests that were answered",
                "structures": "Structures by status",
                "atoms": "Atoms of structures that were evaluated",
                "evaluations": "Calls of the ensemble",
                "batches": "Groups of requests that came together",
                "compute_seconds": "Time spent on answers",
                "errors": "Requests that got an error, by kind",
            }.items()
        }
        # older servers have no histograms; these counters have the names and labels of their series
        self._families |= {
            f"batch_{what}_bucket": pb.MetricFamily(
                name=f"atomsieve_batch_{what}_bucket", description=f"Batches of at most `le` {what}", kind=counter
            )
            for what in BUCKETS
        }
        for what, ends in BUCKETS.items():
            for end in ends:  # all of them are there from the start, as a histogram's are
                self._metric(f"batch_{what}_bucket", "le", format_bound(end))

    def count_error(self, kind: str) -> None:
        """Count a request that got an error outside the engine."""
        self._metric("errors", "kind", kind).increment(1.0)

    def add(self, work: Work, requests: int) -> None:
        """Add the counts of one call of the engine. requests : that came together."""
        for what, size in (("requests", requests), ("structures", work.structures)):
            for end in BUCKETS[what]:
                if size <= end:
                    self._metric(f"batch_{what}_bucket", "le", format_bound(end)).increment(1.0)
        one = {
            "requests": work.requests,
            "atoms": work.atoms,
            "evaluations": work.evaluations,
            "batches": 1,
            "compute_seconds": work.seconds,
        }
        for name, value in one.items():
            self._metric(name).increment(float(value))
        for name, counts in (("structures", work.status), ("errors", work.errors)):
            label = "status" if name == "structures" else "kind"
            for key, value in counts.items():
                self._metric(name, label, key).increment(float(value))

    def _metric(self, name: str, label: str = "", value: str = "") -> Any:
        if (name, value) not in self._known:
            labels = {"model": self._model} | ({label: value} if label else {})
            self._known[name, value] = self._families[name].Metric(labels=labels)
        return self._known[name, value]


def format_bound(end: float) -> str:
    """Return the upper end of a bucket as Prometheus writes it."""
    return "+Inf" if math.isinf(end) else f"{end:g}"


def load_predictor(folder: Path, settings: Settings, kind: str, gpu: str, instances: int = 1) -> Any:
    """Return the predictor of a version folder, on the GPU that Triton gives the instance if it is one for GPUs.

    instances : copies of the model, which share the cores.
    """
    import torch

    from atomsieve.predict import Predictor

    device = f"cuda:{gpu}" if settings.device == "cuda" and kind == "GPU" else settings.device
    if not device.startswith("cuda"):
        torch.set_num_threads(choose_threads(settings.threads, instances))
    return Predictor.load(
        folder / GFM, head=settings.head, precision=settings.precision, device=device, backend=settings.backend
    )
