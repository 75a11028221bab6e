"""Draws docs/figures/architecture.png: the rooms of the package as the import contract in pyproject.toml orders them.

python docs/figures/architecture.py
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

HERE = Path(__file__).resolve().parent
DOES = {
    "cli": "commands, options, the demo",
    "properties": "equation of state, elastic moduli, phonons of the best",
    "followup": "duplicates, hull, relaxation,\nstructures to label",
    "serve": "Triton repository,\nmodel, server",
    "screen": "candidates in, ranked rows out: MPI, resumable",
    "calculators": "ASE, torch-sim, batched relaxation",
    "train": "configuration and labels to gfm/",
    "remote": "clients of servers,\nno torch",
    "evaluation": "predictions beside labels:\nerrors, calibration, plots",
    "predict": "Predictor, its Protocol and backends, memory, status",
    "export": "ONNX, TorchScript, .pt2, checked against FP64",
    "gfm": "the ensemble folder: manifest, weights, ids",
    "uncertainty": "calibration, domain, mixture of heads",
    "models": "encoders, heads, the stacked ensemble",
    "graphs": "neighbour lists and tables",
    "structures": "ragged batches, files of every format",
    "runs": "MPI, launchers,\nlocks, output files",
    "devices": "CPU or GPU",
    "forks": "no forks\nafter threads",
    "native": "C++ kernels",
    "text": "words of\nmessages",
    "errors": "one-line errors and exit codes",
    "version": "of the package",
}
COLOURS = ["#dbe9f6", "#e6f2e0", "#fbeeda", "#f4e3ec"]
BAND = {  # which rooms share a colour: people, work, ensemble, ground
    **dict.fromkeys(["cli", "followup", "properties", "serve", "screen", "calculators", "train"], 0),
    **dict.fromkeys(["remote", "evaluation", "predict", "export"], 1),
    **dict.fromkeys(["gfm", "uncertainty", "models", "graphs", "structures"], 2),
    **dict.fromkeys(["runs", "devices", "forks", "native", "text", "errors", "version"], 3),
}


def read_layers() -> list[list[str]]:
    """Return the rooms of each layer, from the top, as the contract `rooms` names them."""
    text = (HERE.parents[1] / "pyproject.toml").read_text()
    contracts = tomllib.loads(text)["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["id"] == "rooms")
    return [[room.strip() for room in layer.split("|")] for layer in layers]


def draw(layers: list[list[str]]) -> plt.Figure:
    """Draw one row of boxes for each layer, and the direction of imports beside them."""
    height, width, left = 0.82, 10.0, 0.7
    figure, axes = plt.subplots(figsize=(9, 11.5))
    for row, rooms in enumerate(layers):
        y = (len(layers) - 1 - row) * 1.0
        share = width / len(rooms)
        for column, room in enumerate(rooms):
            x = left + column * share
            box = FancyBboxPatch(
                (x + 0.06, y),
                share - 0.12,
                height,
                boxstyle="round,pad=0,rounding_size=0.08",
                facecolor=COLOURS[BAND[room]],
                edgecolor="#555555",
                linewidth=0.8,
            )
            axes.add_patch(box)
            axes.text(x + share / 2, y + height * 0.70, room, ha="center", va="center", weight="bold", size=11)
            axes.text(x + share / 2, y + height * 0.31, DOES[room], ha="center", va="center", size=7.5)
    top = len(layers) - 1 + height
    axes.add_patch(FancyArrowPatch((0.3, top), (0.3, 0), arrowstyle="-|>", mutation_scale=18, color="#555555"))
    axes.text(0.12, top / 2, "a room imports rooms below it, never beside or above", rotation=90, va="center", size=9)
    axes.set_xlim(0, left + width + 0.05)
    axes.set_ylim(-0.1, top + 0.1)
    axes.axis("off")
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    draw(read_layers()).savefig(HERE / "architecture.png", dpi=110)
