"""Compares an artefact with the ensemble in FP64: the reference, the errors and their tolerances.

The reference is the ensemble itself, eager, in FP64, with the plainest form of the message (one row per edge). The
artefact is evaluated in a fresh process, as its users will do.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError
from atomsieve.export.checks import Checks, Part
from atomsieve.gfm import EnsembleManifest, ExportEntry
from atomsieve.graphs import build_graph
from atomsieve.models import Ensemble, set_precision
from atomsieve.structures import StructureBatch

Values = dict[str, NDArray[Any]]
"""Results by "part.name": parts `vector` and `varied` have energy [S], energy_std [S], energy_members [K,S], and forces
[N,3], forces_std [N,3], forces_members [K,N,3], stress [S,3,3] where they are given; `ranked` has energy [S]. A
reference also has "part.atomic" [S], the sums of element references. In eV and Angstrom; NaN where a value lacks."""

MEMORY = 2.5e8  # bytes that one piece of the reference may take, roughly; small pieces stay in the cache
_BYTES_PER_EDGE = 36 * 8  # of a member and channel: filters, payloads and messages of an edge, kept for the backward


@dataclass(frozen=True)
class Tolerance:
    """Largest differences from FP64 that a precision may have.

    Attributes
    ----------
    energy : eV/atom; force : eV/Angstrom, of a component; stress : eV/Angstrom^3. Of the mean over K members; values of
        single members, and their spread, may be off by sqrt(K) times as much.
    relative : largest RMS error in units of the spread of energies, or of the RMS force, over the varied structures.
    spearman, best : lowest rank correlation, and share of the best 1 % that are found.
    """

    energy: float
    force: float
    stress: float
    relative: float
    spearman: float
    best: float


TOLERANCES = {
    "fp64": Tolerance(1e-9, 1e-8, 1e-8, 1e-6, 0.99999, 0.98),
    "fp32": Tolerance(5e-6, 5e-5, 5e-5, 1e-3, 0.9999, 0.96),
    "bf16": Tolerance(np.inf, np.inf, np.inf, 0.1, 0.99, 0.8),
}
"""Errors of energy, force and stress count as they are where values are ordinary (`LIMITS`), else in proportion."""

LIMITS = {"energy": 10.0, "force": 10.0, "stress": 1.0}
"""Largest ordinary energy per atom (without element references), force and stress, or their spread over members. Where
any of a structure's values is x times its limit, all its errors may be x times the tolerance: activations are as much
larger, and no floating point is better. The same where the eager ensemble in FP32 is itself off by x / `MARGIN` times
the tolerance of FP32, as can happen far from what it was trained on."""
MARGIN = 10.0
"""How much worse another order of the same operations may be than the eager one, on one structure. Up to 7 was seen,
between eager torch and onnxruntime, on two heavy atoms far too near."""

TIE = 1e-6
"""eV/atom; candidates nearer than this to the last of the best count as among them."""
FEW_RANKED, FEW_BEST = 100, 10
"""Rank correlation and share of the best are judged from so many candidates on."""

_QUANTITIES = {
    "energy_per_atom": ("energy", "energy", "eV/atom"),
    "energy_members_per_atom": ("energy_members", "energy", "eV/atom"),
    "energy_std_per_atom": ("energy_std", "energy", "eV/atom"),
    "force": ("forces", "force", "eV/Angstrom"),
    "force_std": ("forces_std", "force", "eV/Angstrom"),
    "force_members": ("forces_members", "force", "eV/Angstrom"),
    "stress": ("stress", "stress", "eV/Angstrom^3"),
}
"""Compared quantities: where the values are, whose tolerance holds, and the unit."""
_OF_THE_MEAN = ("energy_per_atom", "force", "stress")


def make_checks(manifest: EnsembleManifest, structures: Path | None = None) -> Checks:
    """Return the structures that artefacts of an ensemble are checked on (see `Checks.of`)."""
    return Checks.of(manifest, structures)


# -- evaluation ----------------------------------------------------------------------------------------------------

Evaluate = Callable[[StructureBatch, NDArray[np.int64], bool], dict[str, NDArray[Any]]]
"""Called with structures, their heads, and whether more than energies is wanted."""
_AXIS = {"energy_members": 1, "forces_members": 1}
_COMPARED = ("energy", "energy_std", "energy_members", "forces", "forces_std", "forces_members", "stress")


def evaluate_part(
    part: Part, call: Evaluate, cutoff: float, max_edges: float, everything: bool
) -> dict[str, NDArray[Any]]:
    """Evaluate a part piece by piece; returns the compared arrays, stress included where there is a virial."""
    found: list[dict[str, NDArray[Any]]] = []
    for piece in part.pieces(cutoff, max_edges):
        batch = part.batch.take(piece)
        out = call(batch, part.head[piece], everything)
        if "virial" in out:
            solid = np.asarray(batch.pbc.all(axis=1))
            volume = np.where(
                solid, np.abs(np.linalg.det(np.where(solid[:, None, None], batch.cell, np.eye(3)))), np.nan
            )
            out = {**out, "stress": out["virial"] / volume[:, None, None]}
        found.append({n: np.asarray(out[n], np.float64) for n in _COMPARED if n in out})
    names = found[0] if found else {}
    return {n: np.concatenate([f[n] for f in found], axis=_AXIS.get(n, 0)) for n in names}


def evaluate_reference(ensemble: Ensemble, checks: Checks) -> Values:
    """Evaluate the checks with the ensemble itself: eager, FP64, on the CPU, one row per edge.

    The ensemble is evaluated in FP32 as well, to see where FP32 itself cannot hold the tolerances (`LIMITS`). Takes
    seconds for small ensembles and minutes for large ones; memory stays near `MEMORY`.
    """
    values: Values = {}
    for name in ("vector", "varied", "ranked"):
        part: Part = getattr(checks, name)
        found = _eager(ensemble, "fp64", part, name != "ranked")
        values |= {f"{name}.{n}": a for n, a in found.items()}
        values[f"{name}.atomic"] = ensemble.reference_energy(part.batch.numbers, part.batch.ptr, part.head)
        if name != "ranked" and found:
            values[f"{name}.condition"] = _condition(part.batch, found, _eager(ensemble, "fp32", part, True))
    return values


def _condition(batch: StructureBatch, exact: Values, single: Values) -> NDArray[np.float64]:
    """Return [S]: `MARGIN` times the largest error of the ensemble in FP32, in units of FP32's tolerances.

    The errors of members are divided by sqrt(K), which gives the expected error of their mean; the mean's own error may
    be small by chance. Members that share an encoder also share its errors, which are then not divided.
    """
    tolerance = TOLERANCES["fp32"]
    root = np.sqrt(len(exact.get("forces_members", exact["energy_members"])))
    off = np.abs(single["energy_members"] - exact["energy_members"]).max(0) / root
    worst = off / np.maximum(batch.counts, 1) / tolerance.energy
    if "forces_members" in exact:
        force = np.abs(single["forces_members"] - exact["forces_members"]).max((0, 2)) / root / tolerance.force
        np.fmax.at(worst, batch.structure_of_atom, force)
    if "stress" in exact:
        worst = np.fmax(worst, np.abs(single["stress"] - exact["stress"]).max((1, 2)) / tolerance.stress)
    return np.asarray(MARGIN * np.nan_to_num(worst, nan=0.0, posinf=0.0))


def _eager(ensemble: Ensemble, precision: str, part: Part, everything: bool) -> dict[str, NDArray[Any]]:
    """Evaluate a part with a copy of the ensemble."""
    model = set_precision(copy.deepcopy(ensemble).cpu(), precision).eval().requires_grad_(False)
    config = model.config
    conservative = config.forces == "conservative"

    def call(batch: StructureBatch, head: NDArray[np.int64], everything: bool) -> dict[str, NDArray[Any]]:
        graph = build_graph(batch, config.cutoff, max_neighbors=config.max_neighbors, dtype=torch.float64)
        # A list that is not known to be complete keeps the message from its fast forms, which artefacts resemble.
        plain = dataclasses.replace(graph, neighbors=dataclasses.replace(graph.neighbors, complete=False))
        state = {}
        if config.charge_spin:
            assert batch.charge is not None and batch.spin is not None
            state = {"charge": torch.from_numpy(batch.charge), "spin": torch.from_numpy(batch.spin)}
        with torch.no_grad():
            out = model(plain, torch.from_numpy(head), **state, forces=everything, stress=everything and conservative)
        energies = out.energy.numpy() + model.reference_energy(batch.numbers, batch.ptr, head)
        found = {"energy": energies.mean(0), "energy_std": _spread(out.energy.numpy()), "energy_members": energies}
        if out.forces is not None:
            forces = out.forces.numpy()
            found |= {"forces": forces.mean(0), "forces_members": forces}  # [1,N,3] of a shallow ensemble
            if not model.shallow:
                found["forces_std"] = _spread(forces)
        if out.virial is not None:
            found["virial"] = out.virial.mean(0).numpy()
        return found

    max_edges = MEMORY / (_BYTES_PER_EDGE * model.members * config.hidden)
    return evaluate_part(part, call, config.cutoff, max_edges, everything)


def _spread(members: NDArray[Any]) -> NDArray[Any]:
    return members.std(0, ddof=1) if len(members) > 1 else np.full(members.shape[1:], np.nan)


def measure_in_process(
    folder: str | Path, entry: ExportEntry, place: Path, checks: Checks
) -> tuple[Values, dict[str, float]]:
    """Evaluate the checks with an artefact in a fresh process; return its values, and its speed.

    folder : the gfm/ folder; place : where the artefact's files lie.
    Speed: structures_per_s and atoms_per_s on the ranked candidates (neighbour search left out), native (structures/s
    of the ensemble itself, in that process, in the same precision), load_s, peak_mib of that process, threads.

    Raises
    ------
    AtomSieveError
        in one line if the artefact does not open or run, or takes the process down.
    """
    from atomsieve.runs.environment import find_missing_variables

    with tempfile.TemporaryDirectory(prefix="atomsieve-check-") as work:
        given, stated, out = (Path(work) / name for name in ("checks.npz", "entry.json", "out.npz"))
        checks.save(given)
        stated.write_text(entry.model_dump_json())
        command = [sys.executable, "-m", "atomsieve.export.measure", str(folder), str(given), str(out)]
        command += ["--entry", str(stated), "--place", str(place)]
        environment = dict(os.environ)
        environment |= find_missing_variables(environment)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode != 0:
            raise AtomSieveError(_describe_failure(entry.key, done.returncode, done.stderr))
        with np.load(out, allow_pickle=False) as saved:
            values = {name: saved[name] for name in saved.files}
    speed = {name.partition(".")[2]: float(values.pop(name)) for name in list(values) if name.startswith("speed.")}
    return values, speed


def _describe_failure(key: str, code: int, stderr: str) -> str:
    """Return one line on how the process of a check ended."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if code < 0:
        name = signal.Signals(-code).name
        more = "; perhaps memory ran out" if name == "SIGKILL" else ""
        return f"{key} took down the process that checked it ({name}{more})"
    named = [line for line in lines if re.match(r"(error|[\w.]*(Error|Exception|Fail)): ", line)] or lines
    return named[-1].removeprefix("error: ") if named else f"the process that checked {key} ended with code {code}"


# -- comparison ----------------------------------------------------------------------------------------------------


def compare(exact: Values, found: Values, checks: Checks) -> dict[str, Any]:
    """Return the errors of an artefact as JSON-able data.

    For each of the parts `vector` and `varied`, and each quantity that both have: `max` and `rms` error, `scale` (RMS
    of the exact values; of energies, their standard deviation over structures without element references), `judged`
    (the largest error, in proportion where values are beyond `LIMITS`), `not_finite` (values that are not, if any). For
    structures on which the eager ensemble in FP32 misses its tolerances are counted under `beyond_fp32`. For
    `ranked`: `spearman` and `best`, the share of the best 1 % by energy per atom that the artefact finds, element
    references taken off, as they are exact in every precision and would hide errors.
    """
    result: dict[str, Any] = {"own_structures": checks.own, "structures": {}, "beyond_fp32": {}}
    for name in ("vector", "varied"):
        part: Part = getattr(checks, name)
        result["structures"][name] = len(part.batch)
        result[name] = _errors(name, part.batch, exact, found)
        hard = exact.get(f"{name}.condition", np.zeros(0)) > MARGIN
        result["beyond_fp32"][name] = int(hard.sum())
    result["structures"]["ranked"] = len(checks.ranked.batch)
    result["ranked"] = _ranking(exact, found, checks.ranked.batch.counts)
    return result


def _errors(part: str, batch: StructureBatch, exact: Values, found: Values) -> dict[str, dict[str, float]]:
    counts = batch.counts
    net = (exact[f"{part}.energy"] - exact[f"{part}.atomic"]) / counts
    beyond = _beyond(part, batch, exact, net)
    members = len(exact.get(f"{part}.energy_members", [1]))
    out = {}
    for quantity, (name, kind, _) in _QUANTITIES.items():
        if f"{part}.{name}" not in exact or f"{part}.{name}" not in found:
            continue
        right, wrong = exact[f"{part}.{name}"], found[f"{part}.{name}"]
        if right.shape != wrong.shape:
            raise AtomSieveError(
                f"the artefact gives {name} of shape {list(wrong.shape)}, expected {list(right.shape)}"
            )
        if kind == "energy":
            right, wrong, scale = right / counts, wrong / counts, float(net.std()) if len(net) else 0.0
            factor = beyond
        else:
            scale = _rms(right)
            factor = beyond[batch.structure_of_atom][:, None] if kind == "force" else beyond[:, None, None]
        if quantity not in _OF_THE_MEAN:  # errors of K members are independent: their mean's is smaller by sqrt(K)
            factor = factor * np.sqrt(members)
        errors = _of_one(right, wrong, np.broadcast_to(factor, right.shape))
        if errors:
            out[quantity] = {**errors, "scale": scale}
    return out


def _beyond(part: str, batch: StructureBatch, exact: Values, net: NDArray[Any]) -> NDArray[np.float64]:
    """Return [S]: by which factor the values of a structure exceed `LIMITS`, 1 where they do not."""
    size = np.fmax(np.abs(net), exact[f"{part}.energy_std"] / batch.counts) / LIMITS["energy"]
    for name in ("forces", "forces_std"):
        if f"{part}.{name}" in exact:
            np.fmax.at(size, batch.structure_of_atom, np.abs(exact[f"{part}.{name}"]).max(1) / LIMITS["force"])
    if f"{part}.stress" in exact:
        size = np.fmax(size, np.abs(exact[f"{part}.stress"]).max((1, 2)) / LIMITS["stress"])
    size = np.fmax(size, exact.get(f"{part}.condition", size))
    return np.asarray(np.fmax(size, 1.0))


def _of_one(right: NDArray[Any], wrong: NDArray[Any], beyond: NDArray[Any]) -> dict[str, float]:
    there = np.isfinite(right)
    if not there.any():
        return {}
    fine = there & np.isfinite(wrong)
    error = np.abs(wrong[fine] - right[fine])
    if not len(error):
        return {"max": 0.0, "rms": 0.0, "judged": 0.0, "not_finite": int(there.sum())}
    out = {"max": float(error.max()), "rms": _rms(error), "judged": float((error / beyond[fine]).max())}
    return {**out, "not_finite": int((there & ~fine).sum())} if not fine[there].all() else out


def _rms(values: NDArray[Any]) -> float:
    fine = values[np.isfinite(values)]
    return float(np.sqrt((fine * fine).mean())) if fine.size else 0.0


def _ranking(exact: Values, found: Values, counts: NDArray[np.int64]) -> dict[str, float]:
    from scipy.stats import rankdata

    if len(counts) < 2 or "ranked.energy" not in found:
        return {}
    right, wrong = ((v["ranked.energy"] - exact["ranked.atomic"]) / counts for v in (exact, found))
    if not np.isfinite(wrong).all():
        return {"not_finite": int((~np.isfinite(wrong)).sum())}
    wanted = max(1, round(len(counts) / 100))
    last = np.sort(right)[wanted - 1]
    chosen = np.argsort(wrong, kind="stable")[:wanted]
    ranks = rankdata(right), rankdata(wrong)
    varied = all(r.std() > 0 for r in ranks)
    spearman = float(np.corrcoef(*ranks)[0, 1]) if varied else float(np.array_equal(*ranks))
    return {"spearman": spearman, "best": float((right[chosen] <= last + TIE).mean()), "of": wanted}


# -- judgement -----------------------------------------------------------------------------------------------------


def find_violation(fidelity: dict[str, Any], precision: str) -> str | None:
    """Return the first quantity that exceeds its tolerance, as one line; None if the artefact passes."""
    allowed = TOLERANCES[precision]
    where = {
        "vector": "the test vector",
        "varied": "the structures given" if fidelity["own_structures"] else "varied structures",
    }
    for part, place in where.items():
        for quantity, errors in fidelity[part].items():
            _, kind, unit = _QUANTITIES[quantity]
            name, limit = quantity.replace("_", " "), getattr(allowed, kind)
            if errors.get("not_finite"):
                return f"{name}: {errors['not_finite']} values are not finite on {place}"
            if errors["judged"] > limit:
                return (
                    f"{name} is off by {errors['judged']:.1e} {unit} on {place}; {precision} may be off by {limit:.0e}"
                )
            many = part == "varied" and fidelity["structures"]["varied"] >= FEW_BEST
            if many and quantity in ("energy_per_atom", "force") and errors["rms"] > allowed.relative * errors["scale"]:
                return (
                    f"{name} has an RMS error of {errors['rms']:.1e} {unit} on {place}, where values have "
                    f"{errors['scale']:.1e}; {precision} may be off by {allowed.relative:g} of that"
                )
    return _find_ranking_violation(fidelity, allowed, precision)


def _find_ranking_violation(fidelity: dict[str, Any], allowed: Tolerance, precision: str) -> str | None:
    ranking, many = fidelity["ranked"], fidelity["structures"]["ranked"]
    if ranking.get("not_finite"):
        return f"{ranking['not_finite']} energies of ranked candidates are not finite"
    if many >= FEW_RANKED and ranking["spearman"] < allowed.spearman:
        found, needed = ranking["spearman"], allowed.spearman
        return f"the rank correlation is {found:.5f} over {many} candidates; {precision} needs {needed:g}"
    if ranking.get("of", 0) >= FEW_BEST and ranking["best"] < allowed.best:
        found, best = ranking["best"], ranking["of"]
        return f"{found:.0%} of the best {best} candidates are found; {precision} needs {allowed.best:.0%}"
    return None
