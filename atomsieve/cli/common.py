"""Options that several verbs share: one spelling, one help text, one panel for each.

Used as annotations; the default stays in the signature of the command, or in an option group (`atomsieve.cli.groups`):

    def run(device: DeviceOption = "auto", overwrite: OverwriteOption = False) -> None: ...
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from atomsieve.gfm.backends import FORMATS
from atomsieve.models.precision import PRECISIONS
from atomsieve.text import join_choices

if TYPE_CHECKING:
    from rich.console import Console

    from atomsieve.remote.credentials import Credentials

IN_OUT = "Input and output"
MODEL = "Model"
WORK = "How the work is done"
CHOICE = "What is chosen"
SERVER = "Server"

ANY_FILE = (
    "a dataset folder (.bp), or any readable file: extxyz, CIF, POSCAR, ASE db, traj, aselmdb, pymatgen JSON, Parquet; "
    "or a folder of them"
)
CandidatesArgument = Annotated[
    Path,
    typer.Argument(
        help=f"Structures: {ANY_FILE}; - reads extxyz from standard input.", show_default=False, allow_dash=True
    ),
]

OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        help="Where the results go. [default: beside the input]",
        rich_help_panel=IN_OUT,
        show_default=False,
    ),
]

SingleFormatOption = Annotated[
    str | None,
    typer.Option(
        "--as",
        help="OUT is a folder with one file per structure, named by its id: cif or poscar.",
        rich_help_panel=IN_OUT,
        show_default=False,
    ),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace what is already there.", rich_help_panel=IN_OUT)
]

HeadOption = Annotated[
    str | None,
    typer.Option(
        "--head",
        help="Head (source) whose level of theory is predicted, 'all', or 'auto': mixed by composition. "
        "[default: the ensemble's own default head]",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]

PrecisionOption = Annotated[
    str, typer.Option("--precision", help=f"{join_choices(PRECISIONS)}.", rich_help_panel=MODEL)
]

DispersionOption = Annotated[
    str | None,
    typer.Option(
        "--dispersion",
        help="Add D3(BJ) to a head whose level of theory lacks it: auto, or its functional (PBE, B3LYP, ...).",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]

BackendOption = Annotated[
    str,
    typer.Option(
        "--backend",
        help=f"native; {join_choices(FORMATS)} where `atomsieve export` made one; or auto, the fastest checked here.",
        rich_help_panel=MODEL,
    ),
]

DeviceOption = Annotated[
    str,
    typer.Option("--device", help="cpu, cuda, cuda:N, or auto (a GPU if there is one).", rich_help_panel=WORK),
]

SeedOption = Annotated[
    int,
    typer.Option(
        "--seed", help="Seed of everything random; the same seed gives the same result.", rich_help_panel=WORK
    ),
]

LimitOption = Annotated[
    int | None,
    typer.Option("--limit", min=1, help="Use only the first N structures.", rich_help_panel=CHOICE, show_default=False),
]

WhereOption = Annotated[
    str | None,
    typer.Option(
        "--where",
        help='Keep rows for which this holds, e.g. "max_force < 2 and energy_std < 0.05".',
        rich_help_panel=CHOICE,
        show_default=False,
    ),
]

TokenFileOption = Annotated[
    Path | None,
    typer.Option("--token-file", help="File with the token of the server.", rich_help_panel=SERVER, show_default=False),
]

TlsCaOption = Annotated[
    Path | None,
    typer.Option(
        "--tls-ca",
        help="PEM file: whom to trust, with grpcs:// and https://. [default: gRPC's own roots]",
        rich_help_panel=SERVER,
        show_default=False,
    ),
]

TlsCertOption = Annotated[
    Path | None,
    typer.Option("--tls-cert", help="PEM file: this client's certificate.", rich_help_panel=SERVER, show_default=False),
]

TlsKeyOption = Annotated[
    Path | None, typer.Option("--tls-key", help="PEM file: its key.", rich_help_panel=SERVER, show_default=False)
]

ResultsArgument = Annotated[Path, typer.Argument(help="The results folder of a run.", show_default=False)]
ByOption = Annotated[
    str,
    typer.Option(
        "--by",
        help="Column that ranks the rows; auto: energy_above_hull where the head has references, else energy_per_atom.",
        rich_help_panel=CHOICE,
    ),
]
DescendingOption = Annotated[
    bool, typer.Option("--descending/--ascending", help="Largest or smallest first.", rich_help_panel=CHOICE)
]
PerOption = Annotated[
    str | None,
    typer.Option(
        "--per",
        help="At most --each rows of one formula, reduced-formula, chemsys, space-group or source.",
        rich_help_panel=CHOICE,
        show_default=False,
    ),
]
EachOption = Annotated[
    int, typer.Option("--each", min=1, help="Rows of one group, with --per.", rich_help_panel=CHOICE)
]
ParetoOption = Annotated[
    str | None,
    typer.Option(
        "--pareto",
        help="All rows that no other beats in these 2 to 4 columns, e.g. energy_per_atom,energy_std; "
        "`:max` after one where large is good.",
        rich_help_panel=CHOICE,
        show_default=False,
    ),
]
SymprecOption = Annotated[
    float, typer.Option("--symprec", help="Tolerance of space groups, Å.", rich_help_panel=CHOICE)
]
RowHeadOption = Annotated[
    str | None,
    typer.Option(
        "--head",
        help="Rows of this head only; needed where the run had several and heads must not mix.",
        rich_help_panel=CHOICE,
        show_default=False,
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors alone.", rich_help_panel=WORK)]


@dataclass(frozen=True)
class ClientOptions:
    """Token and certificates of a client."""

    token_file: TokenFileOption = None
    tls_ca: TlsCaOption = None
    tls_cert: TlsCertOption = None
    tls_key: TlsKeyOption = None

    def credentials(self) -> Credentials:
        """Read the token, and return it with the files for TLS.

        Raises
        ------
        UsageError
            if a file is missing, or a certificate comes without its key.
        """
        from atomsieve.errors import UsageError
        from atomsieve.remote.credentials import Credentials, read_token

        for option, path in (("--tls-ca", self.tls_ca), ("--tls-cert", self.tls_cert), ("--tls-key", self.tls_key)):
            if path is not None and not path.is_file():
                raise UsageError(f"{option} {path}: there is no such file")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("--tls-cert and --tls-key go together")
        token = None if self.token_file is None else read_token(self.token_file)
        return Credentials(token=token, ca=self.tls_ca, cert=self.tls_cert, key=self.tls_key)


class RunFirst(TyperGroup):
    """Takes `train config.yaml` as `train run config.yaml`, for groups whose main verb is `run`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the called command; anything that is no command's name is the argument of `run`."""
        if args and args[0] not in self.commands:
            args = ["run", *args]
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Let options of `run` come first: `train --set a=b config.yaml`."""
        if args and args[0].startswith("-") and args[0] not in ("-h", "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


def console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Return the rich console that a command passes into the library.

    It prints strings literally: paths and names of sources may hold text that rich would take for markup, `[draft]`, or
    for an emoji, `:x:`. Styled text is given as a `Text`, or by `style`.
    """
    from rich.console import Console

    return Console(stderr=stderr, quiet=quiet, markup=False, emoji=False)


def find_gfm(folder: Path, screen: Console) -> Path:
    """Return the ensemble folder, or the only one inside, such as that of a training, which is said.

    Raises
    ------
    AtomSieveError
        if there is none.
    """
    from atomsieve.gfm.manifest import find_folder

    found = find_folder(folder)
    if found != folder:
        screen.print(f"ensemble: {found}", highlight=False, soft_wrap=True)
    return found


def show_table(screen: Console, title: str, headings: tuple[str, ...], rows: list[list[str]]) -> None:
    """Print a table: the first two columns are names, the others numbers."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for k, heading in enumerate(headings):
        table.add_column(heading, justify="left" if k < 2 else "right", no_wrap=k < 2)
    for row in rows:
        table.add_row(*row)
    if not screen.is_terminal:  # the width of a file or pipe means nothing
        screen.width = max(screen.width, 160)
    screen.print(table)


class Steps:
    """A progress bar on stderr, moved by calls `step(done, total)`; hidden with `quiet` or without a terminal."""

    def __init__(self, quiet: bool, title: str) -> None:
        from rich.progress import Progress

        screen = console(stderr=True)
        self._bar = Progress(console=screen, transient=True, disable=quiet or not screen.is_interactive)
        self._title = title

    def __enter__(self) -> Steps:
        self._bar.start()
        self._task = self._bar.add_task(self._title, total=None)
        return self

    def __call__(self, done: int, total: int) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=done, total=total)

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()


def widen(screen: Console) -> Console:
    """Return the console, wide enough for a table if the output is a file or a pipe, which have no width."""
    if not screen.is_terminal:
        screen.width = max(screen.width, 160)
    return screen
