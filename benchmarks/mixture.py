"""What mixing heads by composition does to energies and forces: labelled structures, their own head against auto.

python benchmarks/mixture.py gfm/ labelled.bp [--most 60]

For each source of the file that is a head: the weight that the mixture gives that head, how often it is the heaviest,
and mean absolute errors of energies (meV/atom) and force components (meV/Angstrom) by the own head and by the mixture.
"""

from __future__ import annotations

import argparse

import numpy as np

from atomsieve.predict import Predictor
from atomsieve.structures import open_structures

HEADINGS = (
    "source",
    "structures",
    "own weight",
    "own heaviest",
    "energy, own",
    "energy, auto",
    "force, own",
    "force, auto",
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gfm")
    parser.add_argument("labelled")
    parser.add_argument("--most", type=int, default=60, help="structures of each source, drawn evenly")
    given = parser.parse_args()
    predictor = Predictor.load(given.gfm, head="auto")
    with open_structures(given.labelled) as reader:
        batch, sources = reader.read(0, len(reader)), [s.name for s in reader.sources]
    if predictor.note("auto"):
        print(predictor.note("auto"))
    print("| " + " | ".join(HEADINGS) + " |\n" + "| --- " * len(HEADINGS) + "|")
    for number, name in enumerate(sources):
        rows = np.flatnonzero(batch.head == number)
        if name not in predictor.heads or not len(rows):
            continue
        own = batch.take(rows[np.unique(np.linspace(0, len(rows) - 1, given.most).astype(int))])
        weights, head = predictor.mixture(own), predictor.heads.index(name)
        errors = []
        for label, which in ((own.energy, "energy"), (own.forces, "forces")):
            for chosen in (name, "auto"):
                found = getattr(predictor(own, {"energy", "forces"}, head=chosen), which)
                size = own.counts if which == "energy" else 1.0
                off = None if label is None else np.abs(found - label) / size
                errors.append("-" if off is None or not np.isfinite(off).any() else f"{1e3 * np.nanmean(off):,.1f}")
        shares = (f"{weights[:, head].mean():.2f}", f"{(weights.argmax(1) == head).mean():.2f}")
        print("| " + " | ".join([name, str(len(own)), *shares, *errors]) + " |", flush=True)


if __name__ == "__main__":
    main()
