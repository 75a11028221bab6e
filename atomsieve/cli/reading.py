"""Options on how a file that is no dataset is read, in groups that verbs share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from atomsieve.structures.read_options import ReadOptions

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
        help="Name of an integer identity. [default: place in the file]", rich_help_panel=FILES, show_default=False
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
        from atomsieve.structures.read_options import ReadOptions

        return ReadOptions(
            format=self.format,
            unit=self.unit or "",
            charge=self.charge,
            spin=self.spin,
            charge_key=self.charge_key,
            spin_key=self.spin_key,
            id_key=self.id_key,
        )
