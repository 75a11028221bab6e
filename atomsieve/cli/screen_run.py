"""`screen run`: screen every candidate with an ensemble, or continue a run that was broken off."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atomsieve.cli.cascade import CascadeMembersOption, CascadeOption, CascadeSafetyOption, check_cascade
from atomsieve.cli.common import (
    CHOICE,
    IN_OUT,
    MODEL,
    SERVER,
    WORK,
    BackendOption,
    ByOption,
    DescendingOption,
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
    wide,
)
from atomsieve.cli.restarts import GraceOption, LauncherOption, MaxRestartsOption, RetryPoisonedOption, supervised
from atomsieve.cli.watching import MetricsOption, OversizedOption

if TYPE_CHECKING:
    from atomsieve.screen.engine.servers import Served

SHOWN = 20  # rows of the table of best rows that a run prints


def run(
    candidates: StructuresArgument,
    ctx: typer.Context,
    ensemble: Annotated[
        Path | None,
        typer.Option(
            "--ensemble",
            "-e",
            help="The ensemble folder (gfm/); not needed with --endpoint.",
            rich_help_panel=MODEL,
            show_default=False,
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint",
            help="Servers that compute instead, e.g. grpc://h1:8001,h2:8001.",
            rich_help_panel=SERVER,
            show_default=False,
        ),
    ] = None,
    model: Annotated[str, typer.Option("--model", help="Name of the ensemble there.", rich_help_panel=SERVER)] = "gfm",
    token_file: TokenFileOption = None,
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    deadline: Annotated[
        float,
        typer.Option(
            "--deadline", help="Seconds for one answer; up to 8 times as many of a busy server.", rich_help_panel=SERVER
        ),
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
    top: Annotated[int, typer.Option("--top", "-k", min=0, help="Rows of top.csv.", rich_help_panel=CHOICE)] = 1000,
    by: ByOption = "energy_per_atom",
    descending: DescendingOption = False,
    where: WhereOption = None,
    limit: LimitOption = None,
    forces: Annotated[bool, typer.Option("--forces", help="Store the forces too.", rich_help_panel=IN_OUT)] = False,
    force_spread: Annotated[
        str,
        typer.Option(
            help="Rows with a spread of forces, if the ensemble is shallow: all, top, none. [default: top]",
            rich_help_panel=WORK,
            show_default=False,
        ),
    ] = "auto",
    oversized: OversizedOption = "cpu",
    metrics: MetricsOption = None,
    chunk_size: Annotated[
        int | None,
        typer.Option(
            help="Structures per chunk. [default: by the size of the input]",
            rich_help_panel=WORK,
            show_default=False,
            min=1,
        ),
    ] = None,
    max_atoms: Annotated[
        int | None,
        typer.Option(help="Atoms per batch. [default: by the device]", rich_help_panel=WORK, show_default=False, min=1),
    ] = None,
    max_edges: Annotated[
        int | None,
        typer.Option(
            help="Estimated edges per batch. [default: by the device]", rich_help_panel=WORK, show_default=False, min=1
        ),
    ] = None,
    max_structure_atoms: Annotated[
        int, typer.Option(help="Larger structures get the status TOO_LARGE.", rich_help_panel=WORK, min=1)
    ] = 20_000,
    threads: Annotated[
        int, typer.Option(help="CPU threads of each process; more processes are faster.", rich_help_panel=WORK, min=1)
    ] = 1,
    copies: Annotated[
        Path | None,
        typer.Option(
            "--copies",
            help="Folder on each node with copies of some parts of the candidates: they are read "
            "there, and mostly by its ranks.",
            rich_help_panel=IN_OUT,
            show_default=False,
        ),
    ] = None,
    local: Annotated[
        Path | None,
        typer.Option(
            "--local",
            help="Folder on a disk of each node that takes the results first; they are brought to "
            "--out now and then, and at the end.",
            rich_help_panel=IN_OUT,
            show_default=False,
        ),
    ] = None,
    collect_every: Annotated[
        float | None,
        typer.Option(
            "--collect-every",
            help="Seconds, with --local: what a lost node can lose. [default: 600]",
            rich_help_panel=IN_OUT,
            show_default=False,
            min=0.0,
        ),
    ] = None,
    cascade: CascadeOption = None,
    cascade_members: CascadeMembersOption = None,
    cascade_safety: CascadeSafetyOption = 2.0,
    max_restarts: MaxRestartsOption = 0,
    launcher: LauncherOption = None,
    grace: GraceOption = 60.0,
    retry_poisoned: RetryPoisonedOption = False,
    quiet: QuietOption = False,
) -> int:
    """Screen every candidate, or continue a run that was broken off: then give the same command again.

    `mpirun -n 4 screen run ...` shares the work among four processes; the results are the same bytes. With --endpoint
    servers compute, and this process reads, sends and writes.
    """
    check_cascade(ctx)
    if (code := supervised(ctx)) is not None:
        return code
    from atomsieve.screen.options import ScreenOptions
    from atomsieve.screen.run import run_screen

    options = ScreenOptions(
        oversized=oversized,
        metrics=None if metrics is None else str(metrics),
        head=head,
        precision=precision,
        backend=backend,
        device=device,
        top=top,
        by=by,
        descending=descending,
        where=where,
        forces=forces,
        force_spread=force_spread,
        limit=limit,
        chunk_size=chunk_size,
        max_atoms=max_atoms,
        max_edges=max_edges,
        max_structure_atoms=max_structure_atoms,
        threads=threads,
        grace=grace,
        retry_poisoned=retry_poisoned,
        copies=None if copies is None else str(copies),
        **_on_nodes(local, collect_every),
        cascade=cascade,
        cascade_members=cascade_members,
        cascade_safety=cascade_safety,
    )
    result = run_screen(
        candidates,
        ensemble,
        options,
        served=_served(ctx),
        out=out,
        overwrite=overwrite,
        console=console(stderr=True, quiet=quiet),
    )
    if result.rank == 0:
        from atomsieve.screen.finish import print_result

        print_result(wide(console(quiet=quiet)), result, by=by, shown=SHOWN, where=where)
    return result.exit_code


def _on_nodes(local: Path | None, collect_every: float | None) -> dict[str, Any]:
    """Return the options for results that are kept on nodes first."""
    from atomsieve.errors import UsageError

    if local is None:
        if collect_every is not None:
            raise UsageError(f"--collect-every {collect_every:g} goes with --local; name a folder, or leave it out")
        return {}
    return {"local": str(local), **({} if collect_every is None else {"collect_seconds": collect_every})}


def _served(ctx: typer.Context) -> Served | None:
    """Return the servers that `screen run` names; refuse options that do not go with them, or only with them."""
    from atomsieve.errors import UsageError
    from atomsieve.screen.engine.servers import OF_SERVERS, Served, refused

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
