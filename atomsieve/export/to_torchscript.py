"""The TorchScript format: `model.ts`, which programs in Python and C++ open with torch alone, without this package.

The file is an archive of weights and code. Its metadata are extra files, one JSON value each
(`METADATA`), so that a C++ program reads the cutoff as a number without a JSON parser.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from atomsieve.errors import DataError
from atomsieve.export.functional import Functional
from atomsieve.export.spec import Spec, WrittenFormat
from atomsieve.export.trace import trace
from atomsieve.export.trust import require_trust
from atomsieve.gfm import ExportEntry
from atomsieve.models import Ensemble
from atomsieve.models.layers import multiplies_bf16

MODEL = "model.ts"
METADATA = (
    "ensemble_id",
    "precision",
    "kind",
    "cutoff",
    "heads",
    "default_head",
    "elements",
    "inputs",
    "outputs",
)
"""Names of the extra files. default_head is null where it is not known; elements : atomic numbers of each head."""

_WRITERS_OWN = ("version", ".data/serialization_id")


def write(ensemble: Ensemble, spec: Spec, folder: Path, ensemble_id: str) -> WrittenFormat:
    """Write `model.ts`; the same ensemble and specification give the same bytes."""
    low = spec.precision == "bf16" and multiplies_bf16(torch.device(spec.device))
    functional = spec.functional(ensemble, moments=True, low_precision_products=low)
    extra = {name: json.dumps(value) for name, value in _metadata(ensemble, functional, spec, ensemble_id).items()}
    archive = io.BytesIO()
    with _silence_torch():
        torch.jit.save(script(trace(functional)), archive, _extra_files=extra)
    (folder / MODEL).write_bytes(_canonicalize(archive))
    flags = {}
    if spec.precision == "bf16":
        flags["bf16"] = "multiplied in BF16" if low else "weights rounded to BF16, multiplied in FP32 (no BF16 here)"
    return WrittenFormat({"torch": torch.__version__}, flags)


def script(traced: fx.GraphModule) -> torch.jit.ScriptModule:
    """Turn the graph of a functional ensemble into TorchScript, its weights made constants."""
    named = fx.GraphModule(traced, traced.graph, "Ensemble")
    type(named).__module__ = "atomsieve"  # the name in the file; without it there is the path of a part of torch
    for node in named.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            node.target = node.target.overloadpacket  # TorchScript picks the overload itself, and knows no other way
        made_on = node.kwargs.get("device")
        if isinstance(made_on, torch.device):  # without a number: the device in use, whichever it is
            node.update_kwarg("device", torch.device(made_on.type))
    named.recompile()
    with _silence_torch():
        frozen: torch.jit.ScriptModule = torch.jit.freeze(torch.jit.script(named.eval()))
    return frozen


def _metadata(ensemble: Ensemble, functional: Functional, spec: Spec, ensemble_id: str) -> dict[str, Any]:
    names = [h.name for h in ensemble.heads]
    default = spec.default_head or (names[0] if len(names) == 1 else None)
    values = (
        ensemble_id,
        spec.precision,
        spec.kind,
        ensemble.config.cutoff,
        names,
        default,
        [sorted(h.references) for h in ensemble.heads],
        [s.name for s in functional.inputs],
        [s.name for s in functional.outputs],
    )
    return dict(zip(METADATA, values, strict=True))


def _canonicalize(archive: io.BytesIO) -> bytes:
    """Rewrite an archive of torch without its parts that differ between runs and machines.

    These are debug information, which holds paths of this machine, and the number that torch gives to each class that
    a process scripts (`___torch_mangle_<n>`).
    """
    out = io.BytesIO()
    with zipfile.ZipFile(archive) as old:
        records = {name.partition("/")[2]: old.read(name) for name in old.namelist()}
    new = torch._C.PyTorchFileWriter(out)
    new.set_min_version(int(records["version"]))
    for name, content in sorted(records.items()):
        if name in _WRITERS_OWN or name.endswith(".debug_pkl"):
            continue
        if name.startswith("code/"):
            name, content = re.sub(r"/___torch_mangle_\d+", "", name), _strip_class_numbers(content)
        elif name == "data.pkl":
            content = _strip_class_numbers(content)
        new.write_record(name, content, len(content))
    new.write_end_of_file()
    return out.getvalue()


def _strip_class_numbers(text: bytes) -> bytes:
    return re.sub(rb"\.___torch_mangle_\d+", b"", text)


@contextlib.contextmanager
def _silence_torch() -> Iterator[None]:
    """Hide torch's warnings on the deprecation of TorchScript and on its own graph class."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The TorchScript type system doesn't support", category=UserWarning)
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=DeprecationWarning)
        yield


class Scripted:
    """An opened `model.ts`."""

    def __init__(self, path: Path, entry: ExportEntry, device: torch.device) -> None:
        """Load a file that this user trusts."""
        self._device, self._inputs, self._outputs = device, entry.inputs, entry.outputs
        again = f"export it again with: --format torchscript --precision {entry.precision} --force"
        found: dict[str, Any] = dict.fromkeys(METADATA, "")
        try:
            with _silence_torch():
                self._model = torch.jit.load(str(path), map_location=device, _extra_files=found)
            said = {name: json.loads(value) for name, value in found.items()}
        except (RuntimeError, ValueError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise DataError(f"{path} does not open as TorchScript ({first}); {again}") from error
        if said["ensemble_id"] != entry.ensemble_id:
            raise DataError(
                f"{path} is of ensemble {str(said['ensemble_id'])[:12]}, not {entry.ensemble_id[:12]} as the manifest "
                f"says; {again}"
            )
        if (said["inputs"], said["outputs"]) != (entry.inputs, entry.outputs):
            raise DataError(
                f"{path} takes {', '.join(said['inputs'])} and gives {', '.join(said['outputs'])}, not what the "
                f"manifest says; {again}"
            )

    def __call__(self, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Evaluate one batch."""
        given = [self._tensor(arrays[name]) for name in self._inputs]
        where = torch.cuda.device(self._device) if self._device.type == "cuda" else contextlib.nullcontext()
        try:
            with torch.inference_mode(), where:
                found = self._model(*given)
        except RuntimeError as error:
            if "out of memory" in str(error) and not isinstance(error, torch.OutOfMemoryError):
                # The interpreter raises one class for every failure.
                raise torch.OutOfMemoryError(str(error).strip().splitlines()[-1]) from error
            raise
        return {name: t.cpu().numpy() for name, t in zip(self._outputs, found, strict=True)}

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        # torch warns of arrays that it could, but here will not, write to.
        return torch.from_numpy(array if array.flags.writeable else np.array(array)).to(self._device)


def open_session(folder: Path, entry: ExportEntry, device: torch.device) -> Scripted:
    """Open `model.ts`.

    Raises
    ------
    AtomSieveError
        if this user has not trusted it; DataError if it does not open, or is not of the manifest's ensemble.
    """
    path = folder / MODEL
    require_trust(path, "TorchScript code")
    return Scripted(path, entry, device)
