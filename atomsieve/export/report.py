"""Exports as people read them: one line each while they are made, tables for the report and the model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomsieve.export.fidelity import LIMITS, TOLERANCES
from atomsieve.gfm import EnsembleManifest, ExportEntry, read_manifest
from atomsieve.gfm.card import worst
from atomsieve.gfm.exports import FOLDER
from atomsieve.runs.output_files import atomic_write

if TYPE_CHECKING:
    from rich.table import Table

REPORT = "report.md"

_USE = (
    "`onnx` holds no code: it may be handed on, and runs wherever ONNX Runtime does, without torch.",
    "`pt2` is the fastest on a CPU, and runs on the kind of processor or GPU that it was made on.",
    "`torchscript` serves C++ programs that link torch.",
    "`fp32` is for everyday use; `bf16` for ranking where the processor multiplies in BF16; `fp64` for comparisons.",
)


def number(value: float | None, digits: int = 2) -> str:
    """Return a number as people read it; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}g}"


def size_of(entry: ExportEntry | Mapping[str, Any]) -> str:
    """Return the size of an artefact's files, e.g. `2.7 MB`."""
    files = entry.files if isinstance(entry, ExportEntry) else entry["files"]
    total = sum(int(f["size"]) for f in files.values())
    return f"{total / 1e6:.1f} MB" if total >= 1e5 else f"{total / 1e3:.1f} kB"


def line(key: str, entry: ExportEntry, seconds: float | None = None) -> str:
    """Return one line about an artefact: seconds it took, largest errors, speed."""
    energy, force = worst(entry.fidelity, "energy_per_atom"), worst(entry.fidelity, "force")
    parts = [key, *([f"{seconds:.0f} s"] if seconds is not None else [])]
    if energy is not None:
        parts.append(f"energy within {number(energy)} eV/atom")
    if force is not None:
        parts.append(f"force within {number(force)} eV/Angstrom")
    if "structures_per_s" in entry.speed:
        native = f" (native {entry.speed['native']:.0f})" if "native" in entry.speed else ""
        parts.append(f"{entry.speed['structures_per_s']:.0f} structures/s{native}")
    return "  ".join([*parts, size_of(entry)])


_COLUMNS = (
    "artefact",
    "energy",
    "force",
    "stress",
    "energy spread",
    "force spread",
    "rank correlation",
    "best 1 %",
    "structures/s",
    "native",
    "size",
)


def rows(manifest: EnsembleManifest) -> list[list[str]]:
    """Return a row of text for each artefact (see `_COLUMNS`); errors are "largest / RMS"."""
    found = []
    for key, entry in manifest.exports.items():
        cells = [f"`{key}`"]
        for quantity in ("energy_per_atom", "force", "stress", "energy_std_per_atom", "force_std"):
            largest, mean = worst(entry.fidelity, quantity), worst(entry.fidelity, quantity, "rms")
            cells.append("-" if largest is None else f"{number(largest)} / {number(mean)}")
        ranking = entry.fidelity.get("ranked", {})
        cells.append(_correlation(ranking.get("spearman")))
        cells.append("-" if "best" not in ranking else f"{100 * ranking['best']:.0f} %")
        speeds = [entry.speed.get(name) for name in ("structures_per_s", "native")]
        found.append([*cells, *("-" if s is None else f"{s:.0f}" for s in speeds), size_of(entry)])
    return found


def _correlation(value: float | None) -> str:
    """Return a rank correlation with as many digits as distinguish it from 1."""
    if value is None:
        return "-"
    return next((f"{value:.{n}f}" for n in (2, 4, 6) if round(value, n) < 1), "1")


def report(manifest: EnsembleManifest) -> str:
    """Return the report on all artefacts of a folder as Markdown."""
    lines = ["# Exports", ""]
    if not manifest.exports:
        return "\n".join([*lines, "There are none. Make one with: atomsieve export FOLDER --format onnx", ""])
    lines += [
        "Each artefact was evaluated in a fresh process and compared with the ensemble itself in FP64.",
        "Errors are given as largest / RMS: energies and their spread over members in eV/atom, forces and their spread "
        "in eV/Å, stress in eV/Å³. The rank correlation (Spearman) and the share of the best 1 % that is found are of "
        "small candidates ordered by energy per atom without element references. Speeds are of these candidates, "
        "neighbour search left out, and compare only within one machine; `native` is the speed of the ensemble itself "
        "in the same process and precision.",
        "",
        *_markdown(_COLUMNS, rows(manifest)),
        "",
        "## Made with",
        "",
        *_markdown(
            ("artefact", "device", "checked on", "threads", "load", "peak memory", "made with"),
            _provenance_rows(manifest),
        ),
        "",
        "## Structures",
        "",
        *_markdown(("artefact", "test vector", "varied", "ranked"), _structure_rows(manifest)),
        "",
        *(["(own): taken from a file that the user gave.", ""] if _any_own(manifest) else []),
        "## What is allowed",
        "",
        *_markdown(("precision", "energy", "force", "stress", "rank correlation", "best 1 %"), tolerance_rows()),
        "",
        f"Where a structure's values exceed {LIMITS['energy']:g} eV/atom, {LIMITS['force']:g} eV/Å or "
        f"{LIMITS['stress']:g} eV/Å³, errors may be larger in proportion. RMS errors of `bf16` may be "
        f"{TOLERANCES['bf16'].relative:g} of the spread of energies and of the RMS force. An artefact that is worse is "
        "not written.",
        "",
        "## Which to use",
        "",
        *(f"- {line}" for line in _USE),
        "",
    ]
    return "\n".join(lines)


def tolerance_rows() -> list[list[str]]:
    """Return the tolerances of each precision, as text."""
    return [
        [
            f"`{name}`",
            *(
                "measured, not limited" if limit == float("inf") else f"{limit:g}"
                for limit in (t.energy, t.force, t.stress)
            ),
            f"{t.spearman:g}",
            f"{100 * t.best:g} %",
        ]
        for name, t in TOLERANCES.items()
    ]


def _provenance_rows(manifest: EnsembleManifest) -> list[list[str]]:
    found = []
    for key, entry in manifest.exports.items():
        speed = entry.speed
        versions = ", ".join(f"{name} {version}" for name, version in entry.versions.items())
        opset = f", opset {entry.flags['opset']}" if "opset" in entry.flags else ""
        found.append(
            [
                f"`{key}`",
                entry.device,
                entry.machine,
                number(speed.get("threads"), 6),
                f"{number(speed.get('load_s'))} s",
                f"{speed['peak_mib']:.0f} MiB" if "peak_mib" in speed else "-",
                versions + opset,
            ]
        )
    return found


def _structure_rows(manifest: EnsembleManifest) -> list[list[str]]:
    found = []
    for key, entry in manifest.exports.items():
        many = entry.fidelity.get("structures", {})
        own = " (own)" if entry.fidelity.get("own_structures") else ""
        cells = [f"{many.get(part, 0)}{own if part != 'vector' else ''}" for part in ("vector", "varied", "ranked")]
        found.append([f"`{key}`", *cells])
    return found


def _any_own(manifest: EnsembleManifest) -> bool:
    return any(entry.fidelity.get("own_structures") for entry in manifest.exports.values())


def _markdown(columns: Sequence[str], found: Sequence[Sequence[str]]) -> list[str]:
    ruled = [columns, ["---"] * len(columns), *found]
    return ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in ruled]


def write_report(folder: str | Path) -> Path:
    """Write `exports/report.md` of a gfm/ folder from its manifest, and return its path."""
    path = Path(folder) / FOLDER / REPORT
    path.parent.mkdir(exist_ok=True)
    atomic_write(path, report(read_manifest(folder)).encode())
    return path


def table(manifest: EnsembleManifest) -> Table:
    """Return the artefacts as a table for the terminal."""
    from rich.table import Table

    shown = Table(title="largest / RMS errors against FP64: eV/atom, eV/Angstrom, eV/Angstrom^3", title_justify="left")
    for name in _COLUMNS:
        shown.add_column(name, justify="left" if name == "artefact" else "right", no_wrap=name == "artefact")
    for row in rows(manifest):
        shown.add_row(row[0].strip("`"), *row[1:])
    return shown
