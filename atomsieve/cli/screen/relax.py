"""`screen relax`: relax the best structures of a screening, many at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from atomsieve.cli.common import (
    CHOICE,
    IN_OUT,
    MODEL,
    WORK,
    DeviceOption,
    DispersionOption,
    HeadOption,
    PrecisionOption,
    QuietOption,
    ResultsArgument,
    console,
    widen,
)
from atomsieve.cli.groups import expand_groups, merge_fields
from atomsieve.cli.screen.options import (
    SHOWN,
    BatchOptions,
    MovedInputOption,
    OutputOptions,
    RankingOptions,
    ThreadsOption,
)

GUARD = "When a structure is stopped"
LIMITS = "What a relaxation may change (inf, or 0 of a least value, is no limit)"


@dataclass(frozen=True)
class GuardOptions:
    """Limits at which the relaxation of a structure is stopped."""

    guard: Annotated[
        bool, typer.Option("--guard", help="Stop what leaves the domain of the head.", rich_help_panel=GUARD)
    ] = False
    max_sigma_energy: Annotated[
        float | None,
        typer.Option(help="Stop above this calibrated error, eV per atom.", rich_help_panel=GUARD, show_default=False),
    ] = None
    max_sigma_force: Annotated[
        float | None,
        typer.Option(
            help="And above this one of a force component, eV/Angstrom.", rich_help_panel=GUARD, show_default=False
        ),
    ] = None
    max_energy_std: Annotated[
        float | None,
        typer.Option(help="Stop above this raw spread, eV per atom.", rich_help_panel=GUARD, show_default=False),
    ] = None
    max_force_std: Annotated[
        float | None,
        typer.Option(help="And above this one of forces, eV/Angstrom.", rich_help_panel=GUARD, show_default=False),
    ] = None


@dataclass(frozen=True)
class LimitOptions:
    """Limits on the change of a structure; beyond them it has not converged, but exploded, collapsed or drifted."""

    max_volume_change: Annotated[
        float, typer.Option(help="Factor of the volume: EXPLODED, COLLAPSED.", rich_help_panel=LIMITS)
    ] = 1.5
    max_gap: Annotated[
        float, typer.Option(help="Growth of an empty layer, Angstrom: EXPLODED.", rich_help_panel=LIMITS)
    ] = 3.0
    max_new_fragments: Annotated[
        float, typer.Option(help="More groups of bonded atoms: EXPLODED.", rich_help_panel=LIMITS)
    ] = 0.0
    min_contact: Annotated[
        float, typer.Option(help="Shortest distance over covalent radii: COLLAPSED.", rich_help_panel=LIMITS)
    ] = 0.6
    stay_in_domain: Annotated[
        bool,
        typer.Option(
            "--stay-in-domain/--may-leave-domain",
            help="In the domain before, outside at the end: LEFT_DOMAIN.",
            rich_help_panel=LIMITS,
        ),
    ] = True
    max_moved: Annotated[
        float, typer.Option(help="Displacement of an atom, Angstrom: DRIFTED.", rich_help_panel=LIMITS)
    ] = 1.5
    max_strain: Annotated[
        float, typer.Option(help="Logarithmic strain of the cell's shape: DRIFTED.", rich_help_panel=LIMITS)
    ] = 0.3
    min_bonds_kept: Annotated[
        float, typer.Option(help="Share of the bonds that must stay: DRIFTED.", rich_help_panel=LIMITS)
    ] = 0.5


@dataclass(frozen=True)
class HoldingOptions:
    """How structures move, and what of them does not."""

    optimizer: Annotated[
        str, typer.Option(help="lbfgs, or fire: twice the steps, as ASE takes them.", rich_help_panel=WORK)
    ] = "lbfgs"
    pressure: Annotated[float, typer.Option(help="GPa, on the cell.", rich_help_panel=WORK)] = 0.0
    keep_symmetry: Annotated[
        float,
        typer.Option(help="Keep the space group found within so many Angstrom; 0.01 is usual.", rich_help_panel=WORK),
    ] = 0.0
    cell_axes: Annotated[
        str, typer.Option(help="Strain the cell along these alone, such as xy.", rich_help_panel=WORK)
    ] = ""
    fix_depth: Annotated[
        float,
        typer.Option(help="Hold atoms within so many Angstrom of the lowest, for slabs.", rich_help_panel=WORK),
    ] = 0.0


@expand_groups()
def relax(
    results: ResultsArgument,
    *,
    top: Annotated[
        int, typer.Option("--top", "-k", min=1, help="How many of the best rows.", rich_help_panel=CHOICE)
    ] = 1000,
    ranking: RankingOptions,
    head: HeadOption = None,
    fmax: Annotated[
        float, typer.Option("--fmax", help="Done when no force is longer, eV/Angstrom.", rich_help_panel=WORK)
    ] = 0.02,
    cell: Annotated[bool, typer.Option("--cell", help="Relax cells too.", rich_help_panel=WORK)] = False,
    max_steps: Annotated[
        int, typer.Option("--max-steps", min=0, help="At most so many for each structure.", rich_help_panel=WORK)
    ] = 500,
    rattle: Annotated[
        float,
        typer.Option(
            "--rattle",
            min=0,
            help="Displace atoms first, Angstrom; 0.01 leaves most saddle points.",
            rich_help_panel=WORK,
        ),
    ] = 0.0,
    held: HoldingOptions,
    guards: GuardOptions,
    limited: LimitOptions,
    no_limits: Annotated[
        bool, typer.Option("--no-limits", help="Believe whatever comes out.", rich_help_panel=LIMITS)
    ] = False,
    ensemble: Annotated[
        Path | None,
        typer.Option(
            "--ensemble",
            "-e",
            help="Folder of the ensemble that screened, if it was moved.",
            rich_help_panel=MODEL,
            show_default=False,
        ),
    ] = None,
    moved_input: MovedInputOption = None,
    dispersion: DispersionOption = None,
    precision: PrecisionOption = "fp32",
    device: DeviceOption = "auto",
    output: OutputOptions,
    trajectory: Annotated[
        bool, typer.Option("--trajectory", help="Write each structure's way, as extxyz.", rich_help_panel=IN_OUT)
    ] = False,
    every: Annotated[
        int, typer.Option("--every", min=1, help="Of a trajectory, every n-th step.", rich_help_panel=IN_OUT)
    ] = 1,
    skin: Annotated[
        float,
        typer.Option(
            "--skin",
            min=0,
            help="Angstrom; keep neighbour lists while atoms move less than half of it.",
            rich_help_panel=WORK,
        ),
    ] = 0.0,
    batch: BatchOptions,
    group_atoms: Annotated[
        int | None,
        typer.Option(
            help="Atoms that one process relaxes in one go. [default: four batches]",
            rich_help_panel=WORK,
            show_default=False,
            min=1,
        ),
    ] = None,
    threads: ThreadsOption = 1,
    quiet: QuietOption = False,
) -> int:
    """Relax the best structures of a screening, many at once, or continue a relaxation that was broken off.

    `mpirun -n 4 screen relax ...` shares the work among four processes; the results are the same bytes.
    """
    from atomsieve.errors import UsageError

    if no_limits and limited != LimitOptions():
        raise UsageError(
            "--no-limits goes with none of the limits; leave it out, or switch off single ones by inf (or 0)"
        )
    if every != 1 and not trajectory:
        raise UsageError(f"--every {every} goes with --trajectory; add that, or leave --every out")
    from atomsieve.calculators.change_limits import ChangeLimits
    from atomsieve.followup.relax.options import RelaxOptions
    from atomsieve.followup.relax.report import print_relaxation
    from atomsieve.followup.relax.run import run_relax
    from atomsieve.screen.selection.select import Selection

    options = RelaxOptions(
        **merge_fields(batch, guards, held),
        selection=Selection(top=top, head=head, **merge_fields(ranking)),
        fmax=fmax,
        cell=cell,
        max_steps=max_steps,
        rattle=rattle,
        precision=precision,
        device=device,
        threads=threads,
        group_atoms=group_atoms,
        skin=skin,
        trajectory=every if trajectory else 0,
        dispersion=dispersion,
        limits=ChangeLimits.none() if no_limits else ChangeLimits(**merge_fields(limited)),
    )
    screen = console(stderr=True, quiet=quiet)
    result = run_relax(
        results,
        options,
        ensemble=ensemble,
        moved_input=moved_input,
        out=output.out,
        overwrite=output.overwrite,
        console=screen,
    )
    if result.rank == 0:
        print_relaxation(widen(console(quiet=quiet)), result, SHOWN)
    return result.exit_code
