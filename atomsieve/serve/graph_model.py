"""Models of Triton's Python backend around an exported artefact: itself, and what stands before and behind it.

Every request is computed by itself. A wrong one gets an error of its own, of the 400 class.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError
from atomsieve.export.artefact import Artefact, digest_of
from atomsieve.graphs import build_graph
from atomsieve.models import Manifest, read_manifest
from atomsieve.predict.backends import choose_device, export_entry
from atomsieve.predict.packing import is_out_of_memory
from atomsieve.serve.engine import Arrays, about
from atomsieve.serve.pipeline import PASSED, Capacity, Finisher, Preparer, finished, served_ensemble
from atomsieve.serve.request import Refused, Request, read_request
from atomsieve.serve.settings import GFM, GRAPH_FILE, Settings
from atomsieve.serve.triton_model import CODES, _bytes, _packed, _probe_dlpack, log
from atomsieve.serve.vector import compare, stored_vector
from atomsieve.serve.wire import INPUTS

FINITE = ("positions", "cell", "charge", "spin")
"""Inputs of an artefact that must be numbers, or its outputs are none."""


class GraphServer:
    """What the models share: settings, tensors, errors, one log line per request."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open what the model needs; a model that fails this is not loaded."""
        import triton_python_backend_utils as pb

        self._pb, self.name = pb, args["model_name"]
        folder = Path(args["model_repository"]) / args["model_version"]
        settings = Settings.read(folder, GRAPH_FILE)
        if settings.device == "cuda" and args["model_instance_kind"] == "GPU":
            settings = settings.model_copy(update={"device": f"cuda:{args['model_instance_device_id']}"})
        if not settings.device.startswith("cuda"):
            torch.set_num_threads(settings.threads or len(os.sched_getaffinity(0)))
        self.settings, self.folder = settings, folder / GFM
        _probe_dlpack(pb)
        self.open(read_manifest(self.folder))
        log("loaded", model=self.name, instance=args["model_instance_name"])

    def open(self, manifest: Manifest) -> None:
        """Open the model's own parts."""
        raise NotImplementedError

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
        began, pb = time.perf_counter(), self._pb
        found = self._answer(request)
        refused = isinstance(found, Refused)
        log("graph", model=self.name, seconds=round(time.perf_counter() - began, 6),
            errors={found.kind: 1} if isinstance(found, Refused) else {})  # fmt: skip
        if isinstance(found, Refused):
            code = getattr(pb.TritonError, CODES.get(found.kind, "INVALID_ARG"))
            return pb.InferenceResponse(error=pb.TritonError(found.message, code))
        assert not refused
        names = set(request.requested_output_names())
        return pb.InferenceResponse([pb.Tensor.from_dlpack(n, tensor(a)) for n, a in found.items() if n in names])

    def _answer(self, request: Any) -> Arrays | Refused:
        if request.is_cancelled():
            return Refused("cancelled", "the client gave the request up")
        try:
            arrays = {t.name(): np.array(np.from_dlpack(t), order="C") for t in request.inputs()}
            parameters = json.loads(request.parameters() or "{}")
        except Exception as error:  # a tensor that no library can read is the client's fault
            return Refused("invalid", f"the tensors cannot be read ({type(error).__name__}: {error})")
        try:
            return self.answer(arrays, parameters, set(request.requested_output_names()))
        except AtomSieveError as error:
            return Refused("invalid", str(error))
        except Exception as error:  # the server must go on, and the client learns no more than that
            if is_out_of_memory(error):
                return Refused("too_large", "the graph does not fit into the server's memory; send fewer structures")
            reference = secrets.token_hex(6)
            log("internal", model=self.name, reference=reference, text=f"{type(error).__name__}: {error}")
            return Refused(
                "internal", f"internal error, reference {reference}: the server's log holds the details under it"
            )


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
            request = read_request(arrays, {"head": head}, wanted, heads=names, default_head=names[0],
                                   ensemble_id="", limits=self.settings.limits)  # fmt: skip
            assert isinstance(request, Request)
            graph = build_graph(request.batch, config.cutoff, max_neighbors=config.max_neighbors)
            found = self.artefact(request.batch, graph, names.index(head))
            return {"status": np.zeros(len(request.batch), np.uint8), **found}

        given = ["status", *entry.outputs]
        compare(stored_vector(self.folder), answer, self.settings.precision, given)

    def answer(self, arrays: Arrays, parameters: dict[str, Any], names: set[str]) -> Arrays | Refused:
        """Return the artefact's outputs; every table is checked before."""
        table = arrays.get("neighbors", np.zeros((0, 1)))
        refusal = self.capacity.refusal(*table.shape) if table.ndim == 2 else None
        if refusal is not None:
            return Refused("too_large", refusal)
        for name in FINITE:
            if name in arrays and not np.isfinite(arrays[name]).all():
                return Refused("invalid", f"{name} holds a number that is not finite")
        return self.artefact.evaluate(arrays)


class PrepareModel(GraphServer):
    """Raw structures to the artefact's inputs."""

    def open(self, manifest: Manifest) -> None:
        """Load the ensemble for its checks, and its first encoder for the domain test."""
        device = choose_device(self.settings.device)
        entry = export_entry(self.folder, manifest, self.settings.backend, self.settings.precision, device)
        self.prepare = Preparer(served_ensemble(self.folder, self.settings), manifest, entry, self.settings)

    def answer(self, arrays: Arrays, parameters: dict[str, Any], names: set[str]) -> Arrays | Refused:
        """Return tables under names that begin with `graph_`, and what goes past the network."""
        found = self.prepare(arrays, parameters)
        if isinstance(found, Refused):
            return found
        passed = {p.name for p in PASSED}
        return {name if name in passed else f"graph_{name}": values for name, values in found.items()}


class FinishModel(GraphServer):
    """Network outputs to answers."""

    def open(self, manifest: Manifest) -> None:
        """Load the ensemble for its calibration."""
        device = choose_device(self.settings.device)
        entry = export_entry(self.folder, manifest, self.settings.backend, self.settings.precision, device)
        self.finish = Finisher(served_ensemble(self.folder, self.settings), entry, digest_of(entry), self.settings)
        shown = Capacity.of(manifest, entry, self.settings).settings(self.settings)
        given = finished(self.finish.predictor)
        self._about = {
            "description": _bytes(about(self.finish.predictor, shown, given)),
            "test_vector": _bytes(stored_vector(self.folder)),
        }

    def answer(self, arrays: Arrays, parameters: dict[str, Any], names: set[str]) -> Arrays | Refused:
        """Return the answer of the whole pipeline."""
        prefix = "network_"
        network = {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
        passed = {p.name: arrays[p.name] for p in PASSED}
        raw = {name: a for name, a in arrays.items() if name in INPUTS}
        request, found = self.finish.answer(raw, parameters, names, network, passed)
        if isinstance(found, Refused) or isinstance(request, Refused):
            return found
        every = {**found, **{name: self._about[name] for name in request.about}}
        return {name: values[None] for name, values in every.items()}


def tensor(values: NDArray[Any]) -> Any:
    """Return an array as a torch tensor of the same shape that the backend's DLPack reader takes."""
    return _packed(values)[0]
