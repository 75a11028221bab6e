"""Models of Triton's Python backend around an exported artefact: itself, and what stands before and behind it.

Every request is computed by itself. A wrong one gets an error of its own, of the 400 class.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError
from atomsieve.export.artefact import Artefact, digest_of
from atomsieve.gfm import Manifest, read_manifest
from atomsieve.graphs import build_graph
from atomsieve.predict.backends.select import choose_device, export_entry
from atomsieve.predict.packing import is_out_of_memory
from atomsieve.remote.test_vector import compare, stored_vector
from atomsieve.remote.wire import INPUTS
from atomsieve.serve.model.engine import Arrays, Work, about, internal_error
from atomsieve.serve.model.request import Refused, Request, RequestError, read_parameters, read_request
from atomsieve.serve.model.settings import GFM, GRAPH_FILE, Settings
from atomsieve.serve.model.threads import instances_of, threads_of
from atomsieve.serve.model.triton_model import (
    SIGN_OF_LIFE,
    JsonLines,
    Metrics,
    _bytes,
    _packed,
    _probe_dlpack,
    log,
    refusal_response,
)
from atomsieve.serve.pipeline import PASSED, Capacity, Finisher, Preparer, finished, served_ensemble

FINITE = ("positions", "cell", "charge", "spin")
"""Inputs of an artefact that must be numbers, or its outputs are none."""


class GraphServer:
    """What the models share: settings, tensors, errors, metrics, one log line per request.

    work : what the present request took.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Open what the model needs; a model that fails this is not loaded."""
        import triton_python_backend_utils as pb

        self._pb, self.name = pb, args["model_name"]
        logging.basicConfig(handlers=[JsonLines()], level=logging.WARNING)
        self._said, self.work = time.monotonic(), Work()
        folder = Path(args["model_repository"]) / args["model_version"]
        settings = Settings.read(folder, GRAPH_FILE)
        if settings.device == "cuda" and args["model_instance_kind"] == "GPU":
            settings = settings.model_copy(update={"device": f"cuda:{args['model_instance_device_id']}"})
        if not settings.device.startswith("cuda"):
            torch.set_num_threads(threads_of(settings.threads, instances_of(args)))
        self.settings, self.folder = settings, folder / GFM
        _probe_dlpack(pb)
        self.open(read_manifest(self.folder))
        self._metrics = Metrics(pb, self.name)
        log("loaded", model=self.name, instance=args["model_instance_name"])

    def open(self, manifest: Manifest) -> None:
        """Open the model's own parts."""
        raise NotImplementedError

    def refusal(self, arrays: Mapping[str, NDArray[Any]], most: int | None = None) -> str | None:
        """Say why tensors are too large, or None, before anything is allocated for them; most : bytes of all."""
        size, allowed = sum(a.nbytes for a in arrays.values()), most or self.settings.limits.bytes
        if size <= allowed:
            return None
        return f"the request has {size} bytes, allowed are {allowed}; send fewer structures at once"

    def answer(self, arrays: Arrays, parameters: dict[str, Any], names: set[str]) -> Arrays | Refused:
        """Return outputs by name, of which those in `names` are wanted, or why there are none."""
        raise NotImplementedError

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself."""
        return [self._one(request) for request in requests]

    def finalize(self) -> None:
        """Say that the instance ends."""
        log("unloaded", model=self.name)

    def _one(self, request: Any) -> Any:
        began, self._said, self.work = time.perf_counter(), time.monotonic(), Work()
        found = self._answer(request)
        response = None
        if not isinstance(found, Refused):
            try:
                response = self._response(found, set(request.requested_output_names()))
            except Exception:  # e.g. no shared memory for so large an answer: the others may fit
                found = internal_error()
        if isinstance(found, Refused):
            response = refusal_response(self._pb, found)
            self.work = Work(errors=Counter([found.kind]))
        self.work.seconds = time.perf_counter() - began
        self._metrics.add(self.work, 1)
        log(
            "graph",
            model=self.name,
            structures=self.work.structures,
            atoms=self.work.atoms,
            seconds=round(self.work.seconds, 6),
            errors=dict(self.work.errors),
        )
        return response

    def _response(self, found: Arrays, names: set[str]) -> Any:
        pb = self._pb
        return pb.InferenceResponse([pb.Tensor.from_dlpack(n, tensor(a)) for n, a in found.items() if n in names])

    def _progress(self) -> None:
        """Say that a long call is at work; the supervisor takes silence for a model that hangs."""
        now = time.monotonic()
        if now - self._said > SIGN_OF_LIFE:
            self._said = now
            log("working", model=self.name)

    def _answer(self, request: Any) -> Arrays | Refused:
        if request.is_cancelled():
            return Refused("cancelled", "the client gave the request up")
        try:
            lent = {t.name(): np.from_dlpack(t) for t in request.inputs()}
            parameters = read_parameters(request.parameters())
        except RequestError as error:
            return Refused(error.kind, str(error))
        except Exception as error:  # a tensor that no library can read is the client's fault
            return Refused("invalid", f"the tensors cannot be read ({type(error).__name__}: {error})")
        try:
            refusal = self.refusal(lent)
            if refusal is not None:
                return Refused("too_large", refusal)
            arrays = {name: np.array(values, order="C") for name, values in lent.items()}
            return self.answer(arrays, parameters, set(request.requested_output_names()))
        except AtomSieveError as error:
            return Refused("invalid", str(error))
        except Exception as error:  # the server must go on, and the client learns no more than that
            if is_out_of_memory(error):
                return Refused("too_large", "the graph does not fit into the server's memory; send fewer structures")
            return internal_error()


class GraphModel(GraphServer):
    """The artefact, run in this process; takes and gives what its file does."""

    def open(self, manifest: Manifest) -> None:
        """Open the artefact and compare it with the test vector."""
        device = choose_device(self.settings.device)
        entry = export_entry(self.folder, manifest, self.settings.backend, self.settings.precision, device)
        self.artefact = Artefact(self.folder, manifest, entry, device)
        self.capacity = Capacity.of(manifest, entry, self.settings)
        names = [h.name for h in manifest.heads]
        config = manifest.config

        def answer(arrays: dict[str, Any], head: str, wanted: list[str]) -> Arrays:
            request = read_request(
                arrays,
                {"head": head},
                wanted,
                heads=names,
                default_head=names[0],
                ensemble_id="",
                limits=self.settings.limits,
            )
            assert isinstance(request, Request)
            graph = build_graph(request.batch, config.cutoff, max_neighbors=config.max_neighbors)
            found = self.artefact(request.batch, graph, names.index(head))
            return {"status": np.zeros(len(request.batch), np.uint8), **found}

        given = ["status", *entry.outputs]
        compare(stored_vector(self.folder), answer, self.settings.precision, given)

    def refusal(self, arrays: Mapping[str, NDArray[Any]], most: int | None = None) -> str | None:
        """Say why a graph is too large, or None."""
        table = arrays.get("neighbors", np.zeros((0, 1)))
        large = self.capacity.refusal(*table.shape) if table.ndim == 2 else None
        return large or super().refusal(arrays, max(self.settings.limits.bytes, self.capacity.bytes))

    def answer(self, arrays: Arrays, parameters: dict[str, Any], names: set[str]) -> Arrays | Refused:
        """Return the artefact's outputs; every table is checked before."""
        for name in FINITE:
            if name in arrays and not np.isfinite(arrays[name]).all():
                return Refused("invalid", f"{name} holds a number that is not finite")
        found = self.artefact.evaluate(arrays)
        self.work = Work(requests=1, structures=len(arrays["cell"]), atoms=len(arrays["numbers"]), evaluations=1)
        return found


class PrepareModel(GraphServer):
    """Raw structures to the artefact's inputs."""

    def open(self, manifest: Manifest) -> None:
        """Load the ensemble for its checks, and its first encoder for the domain test."""
        device = choose_device(self.settings.device)
        entry = export_entry(self.folder, manifest, self.settings.backend, self.settings.precision, device)
        ensemble = served_ensemble(self.folder, self.settings)
        self.prepare = Preparer(ensemble, manifest, entry, self.settings, self._progress)

    def answer(self, arrays: Arrays, parameters: dict[str, Any], names: set[str]) -> Arrays | Refused:
        """Return tables under names that begin with `graph_`, and what goes past the network."""
        found = self.prepare(arrays, parameters)
        if isinstance(found, Refused):
            return found
        self.work = self.prepare.engine.work
        passed = {p.name for p in PASSED}
        return {name if name in passed else f"graph_{name}": values for name, values in found.items()}


class FinishModel(GraphServer):
    """Network outputs to answers."""

    def open(self, manifest: Manifest) -> None:
        """Load the ensemble for its calibration."""
        device = choose_device(self.settings.device)
        entry = export_entry(self.folder, manifest, self.settings.backend, self.settings.precision, device)
        ensemble = served_ensemble(self.folder, self.settings)
        self.finish = Finisher(ensemble, entry, digest_of(entry), self.settings, self._progress)
        self.capacity = Capacity.of(manifest, entry, self.settings)
        shown = self.capacity.settings(self.settings)
        given = finished(self.finish.predictor)
        self._about = {
            "description": _bytes(about(self.finish.predictor, shown, given)),
            "test_vector": _bytes(stored_vector(self.folder)),
        }

    def refusal(self, arrays: Mapping[str, NDArray[Any]], most: int | None = None) -> str | None:
        """Say why a request, with what the network made of it, is too large, or None."""
        limit = self.settings.limits.bytes
        return super().refusal(arrays, limit + max(limit, self.capacity.bytes))

    def answer(self, arrays: Arrays, parameters: dict[str, Any], names: set[str]) -> Arrays | Refused:
        """Return the answer of the whole pipeline."""
        prefix = "network_"
        network = {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
        passed = {p.name: arrays[p.name] for p in PASSED if p.name in arrays}
        raw = {name: a for name, a in arrays.items() if name in INPUTS}
        request, found = self.finish.answer(raw, parameters, names, network, passed)
        if isinstance(found, Refused) or isinstance(request, Refused):
            return found
        self.work = self.finish.engine.work
        every = {**found, **{name: self._about[name] for name in request.about}}
        return {name: values[None] for name, values in every.items()}


def tensor(values: NDArray[Any]) -> Any:
    """Return an array as a torch tensor of the same shape that the backend's DLPack reader takes."""
    return _packed(values)[0]
