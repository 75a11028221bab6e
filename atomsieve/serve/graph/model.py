"""A model of Triton's Python backend that evaluates an exported artefact on ready neighbour tables.

Each request is evaluated by itself; a wrong one gets its own error, of the 400 class.
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

from atomsieve.devices import choose_device
from atomsieve.errors import AtomSieveError
from atomsieve.export.artefact import Artefact
from atomsieve.gfm import EnsembleManifest, read_manifest
from atomsieve.graphs import build_graph
from atomsieve.predict.backends.exported import export_entry
from atomsieve.predict.packing import is_out_of_memory
from atomsieve.remote.test_vector import compare_test_vector, read_test_vector
from atomsieve.serve.graph.capacity import Capacity
from atomsieve.serve.model.cpu_quota import choose_threads, count_instances
from atomsieve.serve.model.engine import Arrays, Work, log_internal_error
from atomsieve.serve.model.request import Refused, Request, RequestError, read_parameters, read_request
from atomsieve.serve.model.settings import GFM, GRAPH_FILE, Settings
from atomsieve.serve.model.triton_model import JsonLines, ModelMetrics, log, refusal_response
from atomsieve.serve.model.triton_tensors import pack_tensor, probe_dlpack

FINITE = ("positions", "cell", "charge", "spin")
"""Inputs of an artefact that must be finite."""


class GraphModel:
    """One instance of an exported artefact; its inputs and outputs are those of the file.

    Attributes
    ----------
    work : counts of the latest request, for metrics and the log.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Open the artefact and compare it with the test vector; a model that fails this is not loaded."""
        import triton_python_backend_utils as pb

        self._pb, self.name = pb, args["model_name"]
        logging.basicConfig(handlers=[JsonLines()], level=logging.WARNING)
        self.work = Work()
        folder = Path(args["model_repository"]) / args["model_version"]
        settings = Settings.read(folder, GRAPH_FILE)
        if settings.device == "cuda" and args["model_instance_kind"] == "GPU":
            settings = settings.model_copy(update={"device": f"cuda:{args['model_instance_device_id']}"})
        if not settings.device.startswith("cuda"):
            torch.set_num_threads(choose_threads(settings.threads, count_instances(args)))
        self.settings, self.folder = settings, folder / GFM
        probe_dlpack(pb)
        self._open(read_manifest(self.folder))
        self._metrics = ModelMetrics(pb, self.name)
        log("loaded", model=self.name, instance=args["model_instance_name"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Evaluate each request by itself."""
        return [self._respond(request) for request in requests]

    def finalize(self) -> None:
        """Log that the instance ends."""
        log("unloaded", model=self.name)

    def _open(self, manifest: EnsembleManifest) -> None:
        """Open the artefact and check it against the test vector."""
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

        compare_test_vector(read_test_vector(self.folder), answer, self.settings.precision, ["status", *entry.outputs])

    def _refusal(self, arrays: Mapping[str, NDArray[Any]]) -> str | None:
        """Return why a graph is too large, or None; decided by shapes, before anything is copied."""
        table = arrays.get("neighbors", np.zeros((0, 1)))
        too_large = self.capacity.refusal(*table.shape) if table.ndim == 2 else None
        if too_large is not None:
            return too_large
        size, allowed = sum(a.nbytes for a in arrays.values()), max(self.settings.limits.bytes, self.capacity.bytes)
        if size <= allowed:
            return None
        return f"the request has {size} bytes, allowed are {allowed}; send fewer structures at once"

    def _evaluate(self, arrays: Arrays) -> Arrays | Refused:
        """Return the artefact's outputs; every table is checked first."""
        for name in FINITE:
            if name in arrays and not np.isfinite(arrays[name]).all():
                return Refused("invalid", f"{name} holds a number that is not finite")
        found = self.artefact.evaluate(arrays)
        self.work = Work(requests=1, structures=len(arrays["cell"]), atoms=len(arrays["numbers"]), evaluations=1)
        return found

    def _respond(self, request: Any) -> Any:
        """Return the response to one request, count it and log it."""
        began, self.work = time.perf_counter(), Work()
        found = self._answer(request)
        response = None
        if not isinstance(found, Refused):
            try:
                response = self._response(found, set(request.requested_output_names()))
            except Exception:  # e.g. no shared memory for so large an answer: the others may fit
                found = log_internal_error()
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

    def _answer(self, request: Any) -> Arrays | Refused:
        if request.is_cancelled():
            return Refused("cancelled", "the client gave the request up")
        try:
            lent = {t.name(): np.from_dlpack(t) for t in request.inputs()}
            read_parameters(request.parameters())  # none has a meaning here; too long ones are refused
        except RequestError as error:
            return Refused(error.kind, str(error))
        except Exception as error:  # a tensor that no library can read is the client's fault
            return Refused("invalid", f"the tensors cannot be read ({type(error).__name__}: {error})")
        try:
            refusal = self._refusal(lent)
            if refusal is not None:
                return Refused("too_large", refusal)
            return self._evaluate({name: np.array(values, order="C") for name, values in lent.items()})
        except AtomSieveError as error:
            return Refused("invalid", str(error))
        except Exception as error:  # the server must go on, and the client learns no more than that
            if is_out_of_memory(error):
                return Refused("too_large", "the graph does not fit into the server's memory; send fewer structures")
            return log_internal_error()


def tensor(values: NDArray[Any]) -> Any:
    """Return an array as a torch tensor of the same shape that the backend's DLPack reader takes."""
    return pack_tensor(values)[0]
