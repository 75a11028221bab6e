"""`atomsieve data generate`: random boxes, substituted prototypes, rattled copies."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atomsieve.cli.common import IN_OUT, OverwriteOption, QuietOption, SeedOption, console
from atomsieve.cli.data_shared import ChargeOption, OutArgument, PositionsOption, SpinOption, progress_bar, skip_torch
from atomsieve.cli.groups import expand_groups
from atomsieve.text import pluralize

if TYPE_CHECKING:
    from atomsieve.structures.generate import StructureGenerator

app = typer.Typer(no_args_is_help=True, add_completion=False)

NumberOption = Annotated[int, typer.Option("--number", "-n", min=1, help="How many structures.", show_default=False)]
RattleOption = Annotated[
    float, typer.Option("--rattle", help="Standard deviation of each coordinate's displacement, Angstrom.")
]
StrainOption = Annotated[float, typer.Option("--strain", help="Largest strain component; periodic structures only.")]


@dataclass(frozen=True)
class DatasetOptions:
    """Charges, seed and form of a generated dataset."""

    charge: ChargeOption = None
    spin: SpinOption = None
    seed: SeedOption = 0
    positions: PositionsOption = "float64"
    overwrite: OverwriteOption = False
    quiet: QuietOption = False


@app.command("random")
@expand_groups()
def random_command(
    out: OutArgument,
    *,
    number: NumberOption,
    min_atoms: Annotated[int, typer.Option(help="Fewest atoms.")] = 2,
    max_atoms: Annotated[int, typer.Option(help="Most atoms.")] = 500,
    max_number: Annotated[int, typer.Option(help="Heaviest atomic number.")] = 94,
    box: Annotated[float, typer.Option(help="Edge of the box, Angstrom.")] = 10.0,
    dataset: DatasetOptions,
) -> None:
    """Atoms thrown into an open box: the workload of HydraGNN's screening runs (with --charge 0 --spin 0)."""
    skip_torch()
    from atomsieve.structures.generate import RandomBoxes

    generator = RandomBoxes(min_atoms, max_atoms, max_number, box, charge=dataset.charge, spin=dataset.spin)
    _generate(generator, out, number, dataset)


@app.command("substitute")
@expand_groups()
def substitute_command(
    out: OutArgument,
    *,
    number: NumberOption,
    prototypes: Annotated[
        Path,
        typer.Option(help="Prototypes: a dataset or a file of any format.", rich_help_panel=IN_OUT, show_default=False),
    ],
    elements: Annotated[str, typer.Option(help="New elements, e.g. Cu,Ag,Au.", show_default=False)],
    keep: Annotated[str, typer.Option(help="Elements that stay, e.g. O.", show_default=False)] = "",
    by: Annotated[str, typer.Option(help="species: each element becomes one other; sites: every atom for itself.")] = (
        "species"
    ),
    scale_volume: Annotated[bool, typer.Option(help="Scale cells by the elements' covalent radii.")] = True,
    rattle: RattleOption = 0.0,
    strain: StrainOption = 0.0,
    dataset: DatasetOptions,
) -> None:
    """Replace the elements of prototypes by others."""
    skip_torch()
    from atomsieve.structures.generate import Substituted, atomic_numbers_of

    generator = Substituted(
        _parents(prototypes),
        atomic_numbers_of(elements.split(",")),
        atomic_numbers_of(keep.split(",")) if keep else (),
        by,
        scale_volume,
        rattle,
        strain,
        charge=dataset.charge,
        spin=dataset.spin,
    )
    _generate(generator, out, number, dataset)


@app.command("rattle")
@expand_groups()
def rattle_command(
    out: OutArgument,
    *,
    number: NumberOption,
    parents: Annotated[
        Path, typer.Option("--from", help="Structures to copy: a dataset or a file of any format.", show_default=False)
    ],
    rattle: RattleOption = 0.05,
    strain: StrainOption = 0.0,
    dataset: DatasetOptions,
) -> None:
    """Displace the atoms of given structures and strain their cells."""
    skip_torch()
    from atomsieve.structures.generate import Rattled

    generator = Rattled(_parents(parents), rattle, strain, charge=dataset.charge, spin=dataset.spin)
    _generate(generator, out, number, dataset)


def _parents(path: Path) -> Any:
    """Return the structures of a dataset, or of a file of any other format, as one batch."""
    from atomsieve.structures.conversion.ready import open_any
    from atomsieve.structures.generate import load_parents

    with open_any(path, labels=False) as reader:
        return load_parents(reader)


def _generate(generator: StructureGenerator, out: Path, number: int, options: DatasetOptions) -> None:
    """Write structures 0 to `number`; the ranks of an MPI job share the blocks, and the result is the same."""
    from atomsieve.runs.launcher import detect_launcher
    from atomsieve.runs.mpi import open_mpi_world
    from atomsieve.structures import StructureWriter
    from atomsieve.structures.generate import BLOCK, generate

    world = open_mpi_world(detect_launcher(os.environ))
    rank, n_ranks = (0, 1) if world is None else (world.rank, world.size)
    blocks = -(-number // BLOCK)
    first, last = blocks * rank // n_ranks * BLOCK, min(blocks * (rank + 1) // n_ranks * BLOCK, number)
    notes = {"generated": type(generator).__name__, "seed": str(options.seed)}
    writer = StructureWriter(
        out,
        positions=options.positions,
        overwrite=options.overwrite,
        notes=notes,
        rank=rank,
        n_ranks=n_ranks,
        comm=world,
    )
    with (
        writer,
        progress_bar("generating", last - first, console(stderr=True, quiet=options.quiet or rank > 0)) as advance,
    ):
        for batch in generate(generator, first, last, options.seed):
            writer.append(batch)
            advance(len(batch))
    if rank == 0:
        console(quiet=options.quiet).print(f"{pluralize(number, 'structure')} in {out}", highlight=False)
