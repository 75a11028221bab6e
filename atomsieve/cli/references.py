"""`atomsieve references make|show`: the phases from which formation energies and hulls of a head are computed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atomsieve.cli.common import IN_OUT, MODEL, WORK, QuietOption, console, find_gfm, show_table

if TYPE_CHECKING:
    from atomsieve.predict import Predictor
    from atomsieve.stability.make import Relax
    from atomsieve.structures import StructureBatch

app = typer.Typer(no_args_is_help=True, help="Reference phases of a head, for formation energies and convex hulls.")

FolderArgument = Annotated[Path, typer.Argument(help="The ensemble folder (gfm/).", show_default=False)]
HeadChoice = Annotated[
    str | None,
    typer.Option("--head", help="Of this head. [default: the ensemble's]", rich_help_panel=MODEL, show_default=False),
]
FMAX, STEPS = 0.03, 200


@app.command()
def make(
    folder: FolderArgument,
    head: HeadChoice = None,
    source: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            help="Competing phases: a dataset or a file. Of labelled structures the lowest of each formula is "
            "computed, by the ensemble. [default: what the training kept]",
            rich_help_panel=IN_OUT,
            show_default=False,
        ),
    ] = None,
    relax: Annotated[
        bool, typer.Option("--relax", help="Relax the competing phases, too, with cell.", rich_help_panel=WORK)
    ] = False,
    precision: Annotated[str, typer.Option(help="fp64 or fp32.", rich_help_panel=MODEL)] = "fp32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=WORK)] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads.", rich_help_panel=WORK, min=1)] = 1,
    quiet: QuietOption = False,
) -> None:
    """Compute the reference set of a head with the ensemble itself, and store it in the folder.

    Elements: their crystals in the data, and standard prototypes relaxed with cell; the lowest counts. Energies of
    other heads, methods or ensembles are never used. The ensemble keeps its id.
    """
    import torch

    from atomsieve.gfm.manifest import weights_id
    from atomsieve.predict import Predictor
    from atomsieve.stability.make import make_references
    from atomsieve.stability.phases import name_elements, write_references

    screen = console(quiet=quiet)
    folder = find_gfm(folder, console(stderr=True, quiet=quiet))
    torch.set_num_threads(threads)
    predictor = Predictor.load(folder, head=head, precision=precision, device=device)
    name = predictor.head
    phases, origin = _find_phases(folder, name, source, screen)
    level = predictor.describe()["levels_of_theory"].get(name, "")
    made = make_references(
        predictor,
        name,
        weights_id(folder),
        phases,
        _relaxer(predictor, name),
        level=level,
        relax_phases=relax,
        origin=origin,
    )
    path = write_references(folder, made.references)
    lines = [*_describe(folder, made.references)]
    if made.failed:
        lines.append(f"{made.failed:,} candidates have no result and are left out")
    if made.kept_cells:
        lines.append(f"taken as given, because relaxation changed their volume too much: {', '.join(made.kept_cells)}")
    if made.missing:
        lines.append(
            f"no reference for {name_elements(made.missing)}: rows with them get no formation energy; add crystals of "
            "them with --from"
        )
    for line in [*lines, f"wrote {path}"]:
        screen.print(line, highlight=False, soft_wrap=True)


@app.command()
def show(folder: FolderArgument, head: HeadChoice = None, quiet: QuietOption = False) -> None:
    """Show the elements of a reference set, and what it holds."""
    from ase.data import chemical_symbols

    from atomsieve.errors import AtomSieveError
    from atomsieve.gfm.manifest import read_manifest, weights_id
    from atomsieve.stability.phases import read_references, require_weights

    screen, folder = console(quiet=quiet), find_gfm(folder, console(stderr=True, quiet=quiet))
    name = head or read_manifest(folder).default_head
    found = read_references(folder, name)
    if found is None:
        raise AtomSieveError(
            f"{folder} holds no references of head {name!r}; make them with: atomsieve references make {folder} --head "
            f"{name}"
        )
    require_weights(found, weights_id(folder), str(folder))
    rows = []
    for z, k in sorted(found.elements.items()):
        spread = float(found.deviation[k].std(ddof=1)) if found.members > 1 else float("nan")
        inside = "yes" if found.in_domain[k] else "no"
        text = "" if spread != spread else f"{spread:.4f}"
        rows.append([chemical_symbols[z], f"{found.energy[k]:.4f}", text, found.origins[k], found.names[k], inside])
    show_table(
        screen, f"Elements of head {name}", ("element", "eV/atom", "spread", "from", "structure", "in domain"), rows
    )
    for line in _describe(folder, found):
        screen.print(line, highlight=False, soft_wrap=True)


def _describe(folder: Path, found: object) -> list[str]:
    """Return lines for people about a reference set."""
    from atomsieve.stability.phases import ReferenceSet, name_elements

    assert isinstance(found, ReferenceSet)
    prototypes = sorted(z for z, k in found.elements.items() if found.origins[k] == "prototype")
    compounds = sum(1 for n in (found.compositions.ptr[1:] - found.compositions.ptr[:-1]).tolist() if n > 1)
    outside = sorted(z for z, k in found.elements.items() if not found.in_domain[k])
    lines = [
        f"references of head {found.head} ({found.level or 'level of theory not stated'}): {len(found.elements):,} "
        f"elements, {compounds:,} compounds, {'relaxed by the head' if found.relaxed else 'as they were given'}; "
        f"set {found.digest[:12]}"
    ]
    if prototypes:
        lines.append(f"elements by standard prototypes, relaxed with cell: {name_elements(prototypes)}")
    if outside:
        lines.append(f"elements outside of the domain of the head, take their rows with care: {name_elements(outside)}")
    correction = "no corrections" if found.correction == "none" else f"corrections: {found.correction}"
    mixed = "+u" in found.level.lower()
    lines.append(
        f"{correction} are added to energies"
        + ("; the level mixes PBE with PBE+U, whose energies are comparable only within one treatment" if mixed else "")
    )
    return lines


def _find_phases(
    folder: Path, head: str, source: list[Path] | None, screen: object
) -> tuple[StructureBatch | None, str]:
    """Return the competing phases: of files, else those that the training kept, else none."""
    from tempfile import TemporaryDirectory

    from atomsieve.stability.candidates import keep_lowest, read_candidates, read_stored_candidates
    from atomsieve.structures import StructureBatch, open_structures
    from atomsieve.structures.conversion.ready import ensure_dataset

    if not source:
        return read_stored_candidates(folder, head), "data"
    parts = []
    with TemporaryDirectory(prefix="atomsieve-references-") as place:
        for path in source:
            copy = ensure_dataset(path, Path(place), need_sources=False)
            with open_structures(copy.path) as reader:
                parts.append(read_candidates(reader, head, path))
    batch = StructureBatch.concatenate(parts)
    import numpy as np

    known = batch.energy is not None and bool(np.isfinite(batch.energy).all())
    return (keep_lowest(batch) if known else batch), "file"


def _relaxer(predictor: Predictor, head: str) -> Relax:
    """Return the relaxation by a head; without stress cells stay, without forces all does."""
    from atomsieve.calculators.relaxation import relax as run

    outputs = predictor.capabilities.outputs

    def relax(batch: StructureBatch, cell: bool) -> StructureBatch:
        if "forces" not in outputs:
            return batch
        found = run(predictor, batch.replace(energy=None), FMAX, STEPS, cell=cell and "stress" in outputs, head=head)
        return found.batch

    return relax
