"""`screen` (also `atomsieve screen`): rank candidates with an ensemble, look at results, export them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atomsieve.cli.common import (
    CHOICE,
    IN_OUT,
    MODEL,
    SERVER,
    WORK,
    BackendOption,
    DeviceOption,
    HeadOption,
    LimitOption,
    OutOption,
    OverwriteOption,
    PrecisionOption,
    QuietOption,
    StructuresArgument,
    TlsCaOption,
    TlsCertOption,
    TlsKeyOption,
    TokenFileOption,
    WhereOption,
    console,
    credentials,
)

if TYPE_CHECKING:
    from rich.console import Console

    from atomsieve.screen.served import Served

app = typer.Typer(
    help="Screen candidates with an ensemble, alone or under mpirun; then ask how far it is, for the best rows, or for "
    "the rows in another format.",
    no_args_is_help=True,
    add_completion=False,
)

ResultsArgument = Annotated[Path, typer.Argument(help="The results folder of a run.", show_default=False)]
ByOption = Annotated[str, typer.Option("--by", help="Column that ranks the rows.", rich_help_panel=CHOICE)]
DescendingOption = Annotated[
    bool, typer.Option("--descending/--ascending", help="Largest or smallest first.", rich_help_panel=CHOICE)
]
SHOWN = 20  # rows of the table of best rows that a run prints


def _wide(screen: Console) -> Console:
    """Have room for a table where the output is a file or a pipe, whose width means nothing."""
    if not screen.is_terminal:
        screen.width = max(screen.width, 120)
    return screen


@app.command("run")
def run(
    candidates: StructuresArgument,
    ctx: typer.Context,
    ensemble: Annotated[
        Path | None,
        typer.Option("--ensemble", "-e", help="The ensemble folder (gfm/); not needed with --endpoint.",
                     rich_help_panel=MODEL, show_default=False),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", help="Servers that compute instead, e.g. grpc://h1:8001,h2:8001.",
                     rich_help_panel=SERVER, show_default=False),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", help="Name of the ensemble there.", rich_help_panel=SERVER)
    ] = "gfm",
    token_file: TokenFileOption = None,
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    deadline: Annotated[
        float,
        typer.Option("--deadline", help="Seconds for one answer; up to 8 times as many of a busy server.",
                     rich_help_panel=SERVER),
    ] = 60.0,
    patience: Annotated[
        float, typer.Option("--patience", help="Seconds to go on without any answer.", rich_help_panel=SERVER)
    ] = 300.0,
    out: OutOption = None,
    overwrite: OverwriteOption = False,
    head: HeadOption = None,
    precision: PrecisionOption = "fp32",
    backend: BackendOption = "native",
    device: DeviceOption = "auto",
    top: Annotated[
        int, typer.Option("--top", "-k", min=0, help="Rows of top.csv.", rich_help_panel=CHOICE)
    ] = 1000,
    by: ByOption = "energy_per_atom",
    descending: DescendingOption = False,
    where: WhereOption = None,
    limit: LimitOption = None,
    forces: Annotated[bool, typer.Option("--forces", help="Store the forces too.", rich_help_panel=IN_OUT)] = False,
    force_spread: Annotated[
        str,
        typer.Option(help="Rows with a spread of forces, if the ensemble is shallow: all, top, none. [default: top]",
                     rich_help_panel=WORK, show_default=False),
    ] = "auto",
    chunk_size: Annotated[
        int | None,
        typer.Option(help="Structures per chunk. [default: by the size of the input]", rich_help_panel=WORK,
                     show_default=False, min=1),
    ] = None,
    max_atoms: Annotated[
        int | None,
        typer.Option(help="Atoms per batch. [default: by the device]", rich_help_panel=WORK, show_default=False, min=1),
    ] = None,
    max_edges: Annotated[
        int | None,
        typer.Option(help="Estimated edges per batch. [default: by the device]", rich_help_panel=WORK,
                     show_default=False, min=1),
    ] = None,
    max_structure_atoms: Annotated[
        int, typer.Option(help="Larger structures get the status TOO_LARGE.", rich_help_panel=WORK, min=1)
    ] = 20_000,
    threads: Annotated[
        int, typer.Option(help="CPU threads of each process; more processes are faster.", rich_help_panel=WORK, min=1)
    ] = 1,
    quiet: QuietOption = False,
) -> int:  # fmt: skip
    """Screen every candidate, or continue a run that was broken off: then give the same command again.

    `mpirun -n 4 screen run ...` shares the work among four processes; the results are the same bytes. With --endpoint
    servers compute, and this process reads, sends and writes.
    """
    from atomsieve.screen.options import ScreenOptions
    from atomsieve.screen.run import run_screen

    options = ScreenOptions(
        head=head, precision=precision, backend=backend, device=device, top=top, by=by, descending=descending,
        where=where, forces=forces, force_spread=force_spread, limit=limit, chunk_size=chunk_size,
        max_atoms=max_atoms, max_edges=max_edges, max_structure_atoms=max_structure_atoms, threads=threads,
    )  # fmt: skip
    result = run_screen(
        candidates, ensemble, options, served=_served(ctx), out=out, overwrite=overwrite,
        console=console(stderr=True, quiet=quiet),
    )  # fmt: skip
    if result.rank == 0:
        from atomsieve.screen.finish import print_result

        print_result(_wide(console(quiet=quiet)), result, by=by, shown=SHOWN)
    return result.exit_code


def _served(ctx: typer.Context) -> Served | None:
    """Return the servers that `screen run` names; refuse options that do not go with them, or only with them."""
    from atomsieve.errors import UsageError
    from atomsieve.screen.served import OF_SERVERS, Served, refused

    given = ctx.params
    explicit = {name for name in given if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"}
    of_clients = ("model", "token_file", "tls_ca", "tls_cert", "tls_key", "deadline", "patience")
    if given["endpoint"] is None:
        for name in explicit.intersection(of_clients):
            raise UsageError(f"--{name.replace('_', '-')} goes with --endpoint; name a server, or leave it out")
        return None
    for name in explicit.intersection(OF_SERVERS):
        raise refused(name, given[name])
    shown = credentials(given["token_file"], given["tls_ca"], given["tls_cert"], given["tls_key"])
    return Served(given["endpoint"], given["model"], shown, given["deadline"], given["patience"])


@app.command("status")
def status(
    results: ResultsArgument,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every byte with its checksum.", rich_help_panel=WORK)
    ] = False,
) -> None:
    """Say how far a run is, how fast, and what became of its structures; also while it runs."""
    from atomsieve.screen.query import Results, said
    from atomsieve.screen.table import status_table

    opened = Results(results)
    found = opened.status(verify=verify)
    screen = console()
    for line in said(found):
        screen.print(line, highlight=False, soft_wrap=True)
    if found.status:
        screen.print(status_table(found.status, opened.labels))


@app.command("top")
def top(
    results: ResultsArgument,
    k: Annotated[int, typer.Option("-k", "--top", min=1, help="How many rows.", rich_help_panel=CHOICE)] = SHOWN,
    by: ByOption = "energy_per_atom",
    descending: DescendingOption = False,
    where: WhereOption = None,
) -> None:
    """Show the best rows, exactly, over all rows; of a run at work, over those that are durable."""
    from atomsieve.screen.query import Results
    from atomsieve.screen.table import top_table

    opened = Results(results)
    rows = opened.top(k, by, descending=descending, where=where)
    order = "largest" if descending else "smallest"
    note = "" if opened.complete else " (the run is not complete)"
    title = f"{len(rows)} rows with the {order} {by}{note}"
    _wide(console()).print(top_table(rows, opened.labels, opened.formulas(rows), title, by))
    if where is not None and len(rows) < k and (without := opened.without_result(where)):
        console().print(f"{without:,} more rows fulfil --where but have no result; `screen export` writes them too")


@app.command("pick")
def pick(
    results: ResultsArgument,
    n: Annotated[int, typer.Option("--n", "-n", help="How many structures.", rich_help_panel=CHOICE)] = 100,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File to write (.extxyz); a .csv comes beside.", rich_help_panel=IN_OUT)
    ] = Path("picked.extxyz"),
    by: Annotated[
        str | None,
        typer.Option("--by", help="sigma_energy, energy_std (both per atom), sigma_force, max_force_std or distance. "
                     "[default: sigma_energy, or energy_std without calibration]", rich_help_panel=CHOICE,
                     show_default=False),
    ] = None,
    where: WhereOption = None,
    per_formula: Annotated[
        int | None,
        typer.Option("--per-formula", help="At most so many of one reduced formula.", rich_help_panel=CHOICE,
                     show_default=False),
    ] = None,
    head: HeadOption = None,
    candidates: Annotated[
        int, typer.Option("--candidates", help="Compare this many times n rows, the most uncertain.",
                          rich_help_panel=CHOICE)
    ] = 20,
    ensemble: Annotated[
        Path | None,
        typer.Option("--ensemble", "-e", help="Folder of the ensemble that screened, if it was moved.",
                     rich_help_panel=IN_OUT, show_default=False),
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:  # fmt: skip
    """Pick uncertain and different structures to label next, and write them for a first-principles code."""
    from atomsieve.screen.pick import pick as choose
    from atomsieve.screen.pick import targets, write_picked
    from atomsieve.screen.query import Results

    opened = Results(results)
    targets(out, overwrite)
    picked = choose(
        opened, n, by=by, where=where, per_formula=per_formula, head=head, candidates=candidates, ensemble=ensemble
    )
    path, table = write_picked(picked, opened, out, overwrite=overwrite)
    screen = console()
    screen.print(
        f"{len(picked.rows):,} of {picked.good:,} rows picked by {picked.by}, head {picked.head}, among the "
        f"{picked.candidates:,} most uncertain: {path}, {table}", highlight=False, soft_wrap=True,
    )  # fmt: skip
    if len(picked.rows) < n:
        screen.print(
            f"fewer than --n {n}: the candidates hold no more with --per-formula {per_formula}; raise it, or "
            f"--candidates (now {candidates})", highlight=False, soft_wrap=True,
        )  # fmt: skip


@app.command("export")
def export(
    results: ResultsArgument,
    out: Annotated[
        Path, typer.Argument(help="File to write: .csv, .parquet, .npz, .extxyz or .bp.", show_default=False)
    ],
    where: WhereOption = None,
    k: Annotated[
        int | None, typer.Option("--top", "-k", min=1, help="Only the best rows, best first.", rich_help_panel=CHOICE)
    ] = None,
    by: ByOption = "energy_per_atom",
    descending: DescendingOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Write rows as a table (csv, parquet, npz), or their structures with the results as labels (extxyz, bp)."""
    from atomsieve.screen.export import export as write
    from atomsieve.screen.query import Results

    n = write(Results(results), out, where=where, top=k, by=by, descending=descending, overwrite=overwrite)
    console().print(f"{n:,} rows written to {out}", highlight=False, soft_wrap=True)
