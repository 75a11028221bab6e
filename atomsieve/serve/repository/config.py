"""config.pbtxt of a served model, derived from the tables of the wire and written with Triton's own schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from atomsieve.errors import require
from atomsieve.remote.wire import INPUTS, OUTPUTS, Tensor
from atomsieve.serve.repository.layout import WRITER

if TYPE_CHECKING:
    from atomsieve.predict import Predictor

MODEL_PY = '''"""Served by AtomSieve: everything is in the package, which must be installed where the server runs."""

from atomsieve.serve.model.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
ALL_VERSIONS: dict[str, Any] = {"all": {}}
"""All versions are served: a client that names none gets the newest."""
LARGEST_BATCH = 64
"""Requests that Triton may gather; the engine cuts them by atoms and edges."""


def format_message(fields: Mapping[str, Any]) -> str:
    """Return plain data as a model configuration in text form.

    Raises
    ------
    AtomSieveError
        if tritonclient, which brings Triton's schema, is missing; google.protobuf's ParseError for fields that are not
        in the schema.
    """
    schema = require("tritonclient.grpc.model_config_pb2", "serve", "writing a model repository")
    from google.protobuf import json_format, text_format

    return str(text_format.MessageToString(json_format.ParseDict(dict(fields), schema.ModelConfig())))


def model_config(
    name: str,
    outputs: Sequence[str],
    members: int,
    *,
    device: str,
    instances: int,
    gpus: Sequence[int] = (),
    queue_delay: int = 0,
    parameters: Mapping[str, Any],
) -> str:
    """Return config.pbtxt of a model that takes raw structures.

    outputs : names of its outputs, of `atomsieve.remote.wire.OUTPUTS`. members : K. device : cpu, cuda or cuda:N.
    instances : copies on the CPU or on each GPU. gpus : with cuda, those to use; none means all.
    queue_delay : microseconds that a request waits for others while the model is idle. parameters : shown to clients.
    """
    return format_message(
        {
            "name": name,
            "backend": "python",
            "max_batch_size": LARGEST_BATCH,
            "version_policy": ALL_VERSIONS,
            "input": [_tensor(t) | {"allow_ragged_batch": True, "optional": t.optional} for t in INPUTS.values()],
            "output": [_tensor(OUTPUTS[n], members) for n in outputs],
            "instance_group": [instance_group(device, instances, gpus)],
            # Neither priorities nor a queue policy: with either, servers of this age do not fetch requests ahead, and
            # lose wake-ups: a request that comes while the instance still hands out an answer waits for 500 ms.
            "dynamic_batching": {"max_queue_delay_microseconds": queue_delay},
            "parameters": format_parameters({"FORCE_CPU_ONLY_INPUT_TENSORS": "yes"} | dict(parameters)),
        }
    )


def instance_group(device: str, instances: int, gpus: Sequence[int]) -> dict[str, Any]:
    """Return where copies of a model run: `instances` on the CPU, or on each GPU (of those given, if any)."""
    if device != "cuda":
        return {"kind": "KIND_CPU", "count": instances}
    return {"kind": "KIND_GPU", "count": instances, **({"gpus": list(gpus)} if gpus else {})}


def format_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as Triton stores them: strings; other values as JSON."""
    return {key: {"string_value": _text(value)} for key, value in parameters.items()}


def _tensor(tensor: Tensor, members: int = -1) -> dict[str, Any]:
    dims = [members if n == -1 and k == 1 and "members" in tensor.name else n for k, n in enumerate(tensor.dims)]
    return {"name": tensor.name, "data_type": f"TYPE_{tensor.datatype}", "dims": dims}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def config_parameters(predictor: Predictor) -> dict[str, Any]:
    """Return the parameters by which the configuration describes an ensemble to clients."""
    from atomsieve.version import __version__

    about = predictor.describe()
    return {
        WRITER: __version__,
        "ensemble_id": predictor.ensemble_id,
        "heads": list(predictor.capabilities.choices),
        "default_head": predictor.head,
        "levels_of_theory": about["levels_of_theory"],
        "elements": {head: predictor.elements(head) for head in predictor.capabilities.choices},
        "members": predictor.members,
        "cutoff": predictor.cutoff,
        "precision": predictor.precision,
        "backend": predictor.backend,
    }
