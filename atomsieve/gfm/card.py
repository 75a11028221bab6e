"""The model card: the README.md of a gfm/ folder, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ase.data import chemical_symbols

from atomsieve.gfm.evaluation_file import COLUMNS, format_table
from atomsieve.uncertainty.calibration import Calibration, PropertyCalibration


def model_card(
    manifest: Mapping[str, Any],
    calibration: Calibration,
    evaluation: Mapping[str, Any] | None = None,
    *,
    of_present: bool = True,
) -> str:
    """Return the card as Markdown, from the manifest, the calibration and the evaluation (`evaluation.json`).

    of_present : the evaluation is of the ensemble as it is now, not as it was before it was calibrated again.
    """
    config = manifest["config"]
    lines = [
        "# Ensemble of graph foundation models",
        "",
        f"{_members(manifest)} {config['encoder']} with {config['layers']} layers "
        f"of {config['hidden']} channels, cutoff {config['cutoff']} Angstrom, {config['forces']} forces. "
        f"Conditioned on charge and spin: {'yes' if config['charge_spin'] else 'no'}. "
        f"Default head: `{manifest['default_head']}`. Written by atomsieve {manifest['atomsieve']}.",
        "",
        "    from atomsieve.predict import Predictor",
        f'    predictor = Predictor.load("this folder", head="{manifest["default_head"]}")',
        "",
        "Energies are total energies in eV at the level of theory of the head; energies of two heads must not be "
        "compared without taking off their element references.",
        "",
        "## Heads",
        "",
        "| head | level of theory | elements | atoms seen | energy uncertainty | force uncertainty |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for head in manifest["heads"]:
        symbols = " ".join(chemical_symbols[int(z)] for z in sorted(head["elements"], key=int))
        fit = calibration.head(head["name"])
        states = " | ".join(_state(of) for of in (fit.energy_per_atom, fit.force_component))
        lines.append(
            f"| {head['name']} | {head['level_of_theory']} | {symbols} | {sum(head['elements'].values())} | {states} |"
        )
    if calibration.data:
        files = ", ".join(f"{d.name} ({d.part}, {d.structures} structures)" for d in calibration.data)
        lines += ["", f"Calibrated on {files}."]
    if evaluation:
        lines += _describe_evaluation(evaluation, of_present)
    lines += [
        "",
        "## Precision",
        "",
        "Largest differences from FP64 on the test vector.",
        "",
        "| precision | energy, eV/atom | force, eV/Angstrom |",
        "| --- | --- | --- |",
    ]
    for name, errors in manifest["precision"].items():
        lines.append(f"| {name} | {errors['energy_per_atom']:.2g} | {errors['force']:.2g} |")
    if manifest["exports"]:
        lines += [
            "",
            "## Exports",
            "",
            "Largest differences from FP64; all numbers are in `exports/report.md`.",
            "",
            "| artefact | device | energy, eV/atom | force, eV/Angstrom | rank correlation |",
            "| --- | --- | --- | --- | --- |",
            *("| " + " | ".join(row) + " |" for row in export_rows(manifest["exports"])),
        ]
    return "\n".join([*lines, ""])


def _members(manifest: Mapping[str, Any]) -> str:
    count = len(manifest["members"])
    return f"{count} decoders on one encoder, a" if manifest.get("kind") == "shallow" else f"{count} members of"


def _describe_evaluation(evaluation: Mapping[str, Any], of_present: bool) -> list[str]:
    """Return the lines on how good the ensemble is: the verdict, the numbers, and what they are."""
    heads, verdict = evaluation["heads"], evaluation.get("verdict", {})
    lines = ["", "## How good it is", ""]
    lines.append(f"Measured on {evaluation.get('data', {}).get('name', 'labelled structures')}.")
    if not of_present:
        lines.append(
            "The ensemble was fitted again afterwards (calibration, domain): in domain and in 90 % may differ now."
        )
    general = verdict.get("general", [])
    lines += ["", *(f"- {remark['text']}" for remark in general)] if general else []
    lines += ["", format_table(heads), ""]
    shown = [column for column in COLUMNS if any(row.get(column[0]) is not None for row in heads.values())]
    lines.append("; ".join(f"{heading}: {doc}" for _, heading, _, doc in shown) + ".")
    for head, remarks in verdict.get("heads", {}).items():
        lines += ["", f"**{head}**", "", *(f"- {remark['text']}" for remark in remarks)]
    return lines


def _state(fit: PropertyCalibration | None) -> str:
    """Return how a property of a head is calibrated, as text."""
    return "not calibrated" if fit is None else f"calibrated, {fit.n} errors"


def export_rows(exports: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return a row of text for each artefact: key, device, largest errors of energy and force, rank correlation."""
    found = []
    for key, entry in exports.items():
        largest = [worst(entry["fidelity"], quantity) for quantity in ("energy_per_atom", "force")]
        spearman = entry["fidelity"].get("ranked", {}).get("spearman")
        shown = ["-" if value is None else f"{value:.2g}" for value in largest]
        found.append([f"`{key}`", entry["device"], *shown, "-" if spearman is None else f"{spearman:.6f}"])
    return found


def worst(fidelity: Mapping[str, Any], quantity: str, kind: str = "max") -> float | None:
    """Return the larger error of a quantity on the test vector and on varied structures; None if it was not compared.

    fidelity : see `atomsieve.export.fidelity.compare`; kind : "max" or "rms".
    """
    parts = [fidelity.get(part, {}).get(quantity) for part in ("vector", "varied")]
    errors = [float(part[kind]) for part in parts if part is not None]
    return max(errors) if errors else None
