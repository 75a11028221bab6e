"""`screen run`: screen every candidate with an ensemble, or continue a run that was broken off."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from atomsieve.cli.common import (
    CHOICE,
    IN_OUT,
    MODEL,
    WORK,
    BackendOption,
    CandidatesArgument,
    DeviceOption,
    HeadOption,
    LimitOption,
    PrecisionOption,
    QuietOption,
    console,
    widen,
)
from atomsieve.cli.groups import expand_groups, merge_fields
from atomsieve.cli.reading import CandidateOptions
from atomsieve.cli.screen.cascade import CascadeOptions, check_cascade
from atomsieve.cli.screen.options import SHOWN, BatchOptions, OutputOptions, RankingOptions, ThreadsOption
from atomsieve.cli.screen.restarts import FaultOptions, run_under_supervisor
from atomsieve.cli.screen.servers import EndpointOptions


@dataclass(frozen=True)
class PredictorOptions:
    """The predictor of a run."""

    head: HeadOption = None
    precision: PrecisionOption = "fp32"
    backend: BackendOption = "native"
    device: DeviceOption = "auto"


@dataclass(frozen=True)
class ForceOptions:
    """Forces and their spread."""

    forces: Annotated[bool, typer.Option("--forces", help="Store the forces too.", rich_help_panel=IN_OUT)] = False
    members: Annotated[
        bool,
        typer.Option(
            "--members/--no-members",
            help="Store the energy of each member: errors of energies above a hull need them.",
            rich_help_panel=IN_OUT,
        ),
    ] = True
    force_spread: Annotated[
        str,
        typer.Option(
            help="Rows with a spread of forces, if the ensemble is shallow: all, top, none. [default: top]",
            rich_help_panel=WORK,
            show_default=False,
        ),
    ] = "auto"


@dataclass(frozen=True)
class NodeOptions:
    """Copies of the input, and results, on disks of the nodes."""

    copies: Annotated[
        Path | None,
        typer.Option(
            "--copies",
            help="Folder on each node with copies of some parts of the candidates: they are read "
            "there, and mostly by its ranks.",
            rich_help_panel=IN_OUT,
            show_default=False,
        ),
    ] = None
    local: Annotated[
        Path | None,
        typer.Option(
            "--local",
            help="Folder on a disk of each node that takes the results first; they are brought to "
            "--out now and then, and at the end.",
            rich_help_panel=IN_OUT,
            show_default=False,
        ),
    ] = None
    collect_every: Annotated[
        float | None,
        typer.Option(
            "--collect-every",
            help="Seconds, with --local: what a lost node can lose. [default: 600]",
            rich_help_panel=IN_OUT,
            show_default=False,
            min=0.0,
        ),
    ] = None

    def as_screen_options(self) -> dict[str, Any]:
        """Return them as `atomsieve.screen.options.ScreenOptions` takes them.

        Raises
        ------
        UsageError
            if --collect-every is given without --local.
        """
        from atomsieve.errors import UsageError

        found: dict[str, Any] = {"copies": None if self.copies is None else str(self.copies)}
        if self.local is not None:
            found["local"] = str(self.local)
        elif self.collect_every is not None:
            raise UsageError(
                f"--collect-every {self.collect_every:g} goes with --local; name a folder, or leave it out"
            )
        return found | ({} if self.collect_every is None else {"collect_seconds": self.collect_every})


@expand_groups()
def run(
    candidates: CandidatesArgument,
    ctx: typer.Context,
    *,
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
    endpoints: EndpointOptions,
    output: OutputOptions,
    predictor: PredictorOptions,
    top: Annotated[int, typer.Option("--top", "-k", min=0, help="Rows of top.csv.", rich_help_panel=CHOICE)] = 1000,
    ranking: RankingOptions,
    limit: LimitOption = None,
    force_options: ForceOptions,
    oversized: Annotated[
        str,
        typer.Option(
            "--oversized",
            help="A structure too large for the GPU alone: cpu (compute it there) or mark (status OUT_OF_MEMORY).",
            rich_help_panel=WORK,
        ),
    ] = "cpu",
    metrics: Annotated[
        Path | None,
        typer.Option(
            "--metrics",
            help="File that tells how the run is doing, for Prometheus; with {rank} in its name one for each rank.",
            rich_help_panel=IN_OUT,
            show_default=False,
        ),
    ] = None,
    chunk_size: Annotated[
        int | None,
        typer.Option(
            help="Structures per chunk. [default: by the size of the input]",
            rich_help_panel=WORK,
            show_default=False,
            min=1,
        ),
    ] = None,
    batch: BatchOptions,
    max_structure_atoms: Annotated[
        int, typer.Option(help="Larger structures get the status TOO_LARGE.", rich_help_panel=WORK, min=1)
    ] = 20_000,
    threads: ThreadsOption = 1,
    nodes: NodeOptions,
    files: CandidateOptions,
    cascade_options: CascadeOptions,
    faults: FaultOptions,
    quiet: QuietOption = False,
) -> int:
    """Screen every candidate, or continue a run that was broken off: then give the same command again.

    `mpirun -n 4 screen run ...` shares the work among four processes; the results are the same bytes. With --endpoint
    servers compute, and this process reads, sends and writes. A file that is no dataset is converted once, into the
    folder converted/ beside the results.
    """
    check_cascade(ctx)
    if (code := run_under_supervisor(ctx)) is not None:
        return code
    from atomsieve.screen.options import ScreenOptions
    from atomsieve.screen.run import run_screen

    options = ScreenOptions(
        **merge_fields(predictor, ranking, force_options, batch, cascade_options),
        **nodes.as_screen_options(),
        top=top,
        limit=limit,
        oversized=oversized,
        metrics=None if metrics is None else str(metrics),
        chunk_size=chunk_size,
        max_structure_atoms=max_structure_atoms,
        threads=threads,
        grace=faults.grace,
        retry_poisoned=faults.retry_poisoned,
        keep_converted=files.keep_converted,
    )
    result = run_screen(
        candidates,
        ensemble,
        options,
        served=endpoints.resolve(ctx),
        out=output.out,
        overwrite=output.overwrite,
        reading=files.reading(),
        console=console(stderr=True, quiet=quiet),
    )
    if result.rank == 0:
        from atomsieve.screen.finish import print_result

        print_result(widen(console(quiet=quiet)), result, by=result.by, shown=SHOWN, where=ranking.where)
    return result.exit_code
