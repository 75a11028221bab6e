"""The .pt2 format: a torch.export program, and the same compiled ahead of time for this processor or GPU.

`program.pt2` is portable, and can be compiled for another machine. `compiled.pt2` is machine code by AOTInductor:
fast, bound to the kind of processor it was made on, and opened only if this user made or trusts it.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError, DataError
from atomsieve.export.spec import Spec, WrittenFormat, describe_processor
from atomsieve.export.trace import export_program, silence_torch
from atomsieve.export.trust import require_trust
from atomsieve.gfm import ExportEntry
from atomsieve.models import Ensemble
from atomsieve.models.layers import multiplies_bf16

PROGRAM, COMPILED = "program.pt2", "compiled.pt2"
INLINE_UP_TO = 16
"""Radial functions up to which filters are formed inside the message's loops instead of by a matrix product."""


def compiler_options(spec: Spec, radial: int) -> dict[str, Any]:
    """Return the options of AOTInductor.

    Filters are cheap to form and large to store: the compiler is kept from storing them, and unrolls the short sum over
    radial functions. Sums over structures go through the sequential kernel of torch, whose order is fixed.
    """
    return {
        "realize_opcount_threshold": 400,
        "realize_reads_threshold": 60,
        "realize_acc_reads_threshold": 60,
        "unroll_reductions_threshold": radial + 1,
        "cpp.fallback_scatter_reduce_sum": True,
        "aot_inductor.metadata": {},
    }


def write(ensemble: Ensemble, spec: Spec, folder: Path, ensemble_id: str) -> WrittenFormat:
    """Write `program.pt2` and `compiled.pt2`.

    Raises
    ------
    AtomSieveError
        if there is no C++ compiler.
    """
    if spec.device == "cpu" and not any(shutil.which(c) for c in ("g++", "clang++", "c++")):
        raise AtomSieveError(
            "compiling .pt2 needs a C++ compiler and none was found; install g++, or use --format onnx"
        )
    device = torch.device(spec.device)
    radial = ensemble.config.n_basis + 1
    inline = radial <= INLINE_UP_TO
    low = spec.precision == "bf16" and multiplies_bf16(device)
    functional = spec.functional(ensemble, inline=inline, low_precision_products=low)
    exported = export_program(functional)
    chosen = compiler_options(spec, radial) if inline else {}
    chosen["aot_inductor.metadata"] = {
        "ensemble_id": ensemble_id,
        "processor": describe_processor(),
        "precision": spec.precision,
    }
    with silence_torch():
        torch.export.save(exported, str(folder / PROGRAM), extra_files={"ensemble_id": ensemble_id})
        with tempfile.TemporaryDirectory(prefix="atomsieve-pt2-") as work:
            made = torch._inductor.aoti_compile_and_package(
                exported, package_path=str(Path(work) / COMPILED), inductor_configs=chosen
            )
            shutil.move(made, folder / COMPILED)
    flags: dict[str, Any] = {"inline_filters": inline, **{k: v for k, v in chosen.items() if "metadata" not in k}}
    if spec.precision == "bf16":
        flags["bf16"] = "multiplied in BF16" if low else "weights rounded to BF16, multiplied in FP32 (no BF16 here)"
    return WrittenFormat({"torch": torch.__version__}, flags)


class Compiled:
    """An opened `compiled.pt2`."""

    def __init__(self, path: Path, entry: ExportEntry, device: torch.device) -> None:
        self._device = device
        self._outputs = entry.outputs
        try:
            self._run = torch._inductor.aoti_load_package(str(path))
        except (RuntimeError, OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} does not open ({_first_line(error)}); export it again with --force") from error
        found = self._run.loader.get_metadata()
        if found.get("ensemble_id") != entry.ensemble_id:
            raise DataError(
                f"{path} is of ensemble {found.get('ensemble_id', 'unknown')[:12]}, this folder's is "
                f"{entry.ensemble_id[:12]}; export it again with --force"
            )

    def __call__(self, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Evaluate one batch. Compiled code ignores strides, so arrays that are not contiguous are copied first."""
        given = [torch.from_numpy(np.ascontiguousarray(a)).to(self._device) for a in arrays.values()]
        with torch.inference_mode():
            found = self._run(*given)
        return {name: t.cpu().numpy() for name, t in zip(self._outputs, found, strict=True)}


def open_session(folder: Path, entry: ExportEntry, device: torch.device) -> Compiled:
    """Open the compiled package.

    Raises
    ------
    AtomSieveError
        if it was compiled for another processor, or holds code that this user has not trusted.
    """
    made_for = entry.machine
    if device.type == "cpu" and made_for and made_for != describe_processor():
        raise AtomSieveError(
            f"{entry.key} was compiled for {made_for}, this machine is {describe_processor()}; compile it here with: "
            f"atomsieve export FOLDER --format pt2 --precision {entry.precision} --force"
        )
    path = folder / COMPILED
    require_trust(path, "machine code")
    return Compiled(path, entry, device)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
