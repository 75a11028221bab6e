"""Options on how a file that is no dataset is read, in groups that verbs share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from atomsieve.structures.conversion.read_options import ReadOptions

FILES = "Files that are no datasets"

FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format", help="Format of the file, if its name does not tell.", rich_help_panel=FILES, show_default=False
    ),
]
UnitOption = Annotated[
    str | None,
    typer.Option(
        "--unit",
        help="Units of its numbers, before those that it states, e.g. length=bohr,energy=hartree.",
        rich_help_panel=FILES,
        show_default=False,
    ),
]
ChargeKeyOption = Annotated[
    str | None, typer.Option(help="Name of the total charge, e.", rich_help_panel=FILES, show_default=False)
]
SpinKeyOption = Annotated[
    str | None, typer.Option(help="Name of the multiplicity 2S+1.", rich_help_panel=FILES, show_default=False)
]
IdKeyOption = Annotated[
    str | None,
    typer.Option(
        help="Name of the identity, integers or texts. [default: place in the file, and text ids of a usual name]",
        rich_help_panel=FILES,
        show_default=False,
    ),
]
CarryOption = Annotated[
    str | None,
    typer.Option(
        "--carry",
        help="Values of the file to carry beside the structures: mp_id,spacegroup, or all, or none. "
        "[default: text ids]",
        rich_help_panel=FILES,
        show_default=False,
    ),
]
ChargeOption = Annotated[
    float | None,
    typer.Option("--charge", help="Charge of structures that state none.", rich_help_panel=FILES, show_default=False),
]
SpinOption = Annotated[
    float | None,
    typer.Option(
        "--spin", help="Multiplicity of structures that state none.", rich_help_panel=FILES, show_default=False
    ),
]
ElementsOption = Annotated[
    str | None,
    typer.Option(
        "--elements",
        help="Symbols of the types 1, 2, ... of formats that number them: Al,Ni.",
        rich_help_panel=FILES,
        show_default=False,
    ),
]
TopologyOption = Annotated[
    Path | None,
    typer.Option(
        "--topology",
        help="File with the elements of a trajectory that holds positions only.",
        rich_help_panel=FILES,
        show_default=False,
    ),
]


def _name(what: str) -> Any:
    return typer.Option(help=f"Name of {what}.", rich_help_panel=FILES, show_default=False)


@dataclass(frozen=True)
class LabelledOptions:
    """How a file of labelled structures is read."""

    format: FormatOption = None
    energy_key: Annotated[str | None, _name("the total energy")] = None
    forces_key: Annotated[str | None, _name("the forces")] = None
    stress_key: Annotated[str | None, _name("the stress")] = None
    virial_key: Annotated[str | None, _name("the virial, minus stress times volume")] = None
    unit: UnitOption = None
    stress_sign: Annotated[
        int | None,
        typer.Option(
            "--stress-sign",
            help="1: positive under tension (ASE); -1: positive under pressure (VASP).",
            rich_help_panel=FILES,
            show_default=False,
        ),
    ] = None
    charge: ChargeOption = None
    spin: SpinOption = None
    charge_key: ChargeKeyOption = None
    spin_key: SpinKeyOption = None
    carry: CarryOption = None
    elements: ElementsOption = None
    topology: TopologyOption = None

    def reading(self) -> ReadOptions:
        """Return how the file is read."""
        return make_reading(self)


def make_reading(group: Any, **more: Any) -> ReadOptions:
    """Return how a file is read, by those options of a group that say so."""
    from atomsieve.structures.conversion.read_options import ReadOptions

    known = {f.name for f in fields(ReadOptions)}
    given = {f.name: getattr(group, f.name) for f in fields(group) if f.name in known}
    given |= {"unit": given.get("unit") or "", "elements": given.get("elements") or ""}
    topology = given.get("topology")
    return ReadOptions(**given | {"topology": None if topology is None else str(topology)} | more)


@dataclass(frozen=True)
class CandidateOptions:
    """How a file of candidates is read, and what becomes of the dataset that it is converted into."""

    format: FormatOption = None
    unit: UnitOption = None
    charge: ChargeOption = None
    spin: SpinOption = None
    charge_key: ChargeKeyOption = None
    spin_key: SpinKeyOption = None
    id_key: IdKeyOption = None
    carry: CarryOption = None
    elements: ElementsOption = None
    topology: TopologyOption = None
    keep_converted: Annotated[
        bool,
        typer.Option(
            "--keep-converted/--drop-converted",
            help="Keep what the file was converted into, or remove it when all is screened: then `screen export`, "
            "`relax` and the like convert the file again.",
            rich_help_panel=FILES,
        ),
    ] = True

    def reading(self) -> ReadOptions:
        """Return how the file is read."""
        return make_reading(self)
