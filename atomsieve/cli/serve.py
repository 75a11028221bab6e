"""`atomsieve serve repository`, `atomsieve serve start` and `atomsieve serve check`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atomsieve.cli import serve_options as o
from atomsieve.cli.common import IN_OUT, ClientOptions, console
from atomsieve.cli.groups import expand_groups, given_options

if TYPE_CHECKING:
    from atomsieve.serve.model.settings import Settings
    from atomsieve.serve.server.process import ServerOptions
    from atomsieve.serve.server.start import Listening

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Serve an ensemble with a Triton Inference Server: `atomsieve serve start gfm/`.",
)


@app.command("repository")
@expand_groups()
def repository(
    folders: o.Folders,
    *,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="The model repository; a new model or version is added to it.", rich_help_panel=IN_OUT
        ),
    ] = Path("model_repository"),
    version: o.Version = 1,
    overwrite: o.Overwrite = False,
    model: o.ModelOptions,
) -> None:
    """Write a model repository for a Triton Inference Server; it is complete, ensembles included."""
    settings = model.settings()
    gpus = model.gpu_numbers(settings.device)
    _check_heads(folders, settings)
    console(stderr=True).print(f"writing {out} ...", highlight=False, soft_wrap=True, markup=False)
    written = _write_models(out, folders, settings, model, gpus, version=version, overwrite=overwrite)
    shown = console()
    for place in written:
        shown.print(f"wrote {place}", highlight=False, soft_wrap=True, markup=False)
    shown.print(f"next: atomsieve serve start --repository {out}", highlight=False, soft_wrap=True, markup=False)


@app.command("start")
@expand_groups(defaults={"graph_backend": "none"})
def start(
    context: typer.Context,
    *,
    folders: Annotated[
        list[str] | None,
        typer.Argument(
            help="Ensemble folders (gfm/), each as PATH or NAME=PATH.", metavar="[FOLDER...]", show_default=False
        ),
    ] = None,
    repository: o.Given = None,
    model: o.ModelOptions,
    listen: o.ListenOptions,
    watch: o.WatchOptions,
    tritonserver: o.Program = None,
) -> int:
    """Start a Triton server, check it by inference, and supervise it until it is asked to end.

    It answers on 127.0.0.1 alone unless --listen says otherwise. SIGTERM or Ctrl-C lets running requests finish.
    """
    from tempfile import TemporaryDirectory

    from atomsieve.errors import UsageError
    from atomsieve.serve.server.start import list_models, server_options

    if bool(folders) == (repository is not None):
        raise UsageError("name either ensemble folders to serve, or a model repository with --repository")
    if repository is not None:
        given = given_options(context)
        _refuse_unused([p.opts[-1] for p in context.command.params if p.name in given])
    # fast checks come first: writing a repository takes seconds
    settings, listening = model.settings(), listen.listening()
    with TemporaryDirectory(prefix="atomsieve-serve-") as scratch:
        place = repository if repository is not None else Path(scratch) / "models"
        models = list_models(place) if repository is not None else []  # known when they are written
        options, warnings = server_options(place, models, listening, watch.drain_seconds)

        def build() -> None:
            assert folders
            place.mkdir()
            gpus = model.gpu_numbers(settings.device)
            _check_heads(folders, settings)
            _write_models(place, folders, settings, model, gpus)

        return _run(
            options,
            warnings,
            listening,
            watch,
            tritonserver,
            model.threads,
            Path(scratch),
            settings.device,
            build if folders else None,
        )


@app.command("check")
@expand_groups()
def check(
    url: Annotated[str, typer.Argument(help="grpc://HOST:PORT, or grpcs, http, https.", show_default=False)],
    *,
    model: o.Model = "gfm",
    ensemble: o.Ensemble = None,
    heads: o.Heads = None,
    client: ClientOptions,
    seconds: o.Timeout = 60.0,
    quiet: o.Quiet = False,
) -> None:
    """Send the test vector of the ensemble to a server and compare the answers: more than readiness."""
    from atomsieve.serve.check import check_endpoint

    shown = client.credentials()
    found = check_endpoint(url, model=model, credentials=shown, ensemble=ensemble, heads=heads, seconds=seconds)
    if not quiet:
        screen = console()
        for key, value in found.items():
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            screen.print(f"{key}: {text}", highlight=False, soft_wrap=True, markup=False)
        screen.print("sound: every answer to the test vector is right", highlight=False, soft_wrap=True)


def _refuse_unused(given: list[str]) -> None:
    """Refuse options that change nothing when a repository is served.

    Raises
    ------
    UsageError
        naming them.
    """
    from atomsieve.errors import UsageError

    written = {
        "--precision",
        "--backend",
        "--head",
        "--instances",
        "--gpus",
        "--queue-delay",
        "--graph-backend",
        "--max-request-atoms",
        "--max-request-structures",
        "--max-request-bytes",
        "--max-structure-atoms",
    }
    for options, why in (
        (written, "they stand in the repository: give them to atomsieve serve repository"),
        ({"--device"}, "the repository says where its models run"),
    ):
        unused = [name for name in given if name in options]
        if unused:
            raise UsageError(f"{', '.join(unused)} would do nothing with --repository; {why}")


def _check_heads(folders: list[str], settings: Settings) -> None:
    """Look for the head of the settings in each ensemble, before anything is loaded.

    Raises
    ------
    UsageError
        if one lacks it.
    """
    from atomsieve.errors import unknown
    from atomsieve.gfm import read_manifest
    from atomsieve.serve.repository.layout import parse_named_folders

    for _, path in parse_named_folders(folders):
        heads = [head.name for head in read_manifest(path).heads]
        if settings.head is not None and settings.head not in heads:
            raise unknown("head", settings.head, heads)


def _write_models(
    out: Path,
    folders: list[str],
    settings: Settings,
    model: o.ModelOptions,
    gpus: list[int],
    *,
    version: int = 1,
    overwrite: bool = False,
) -> list[Path]:
    """Write the models into a repository; return their version folders."""
    from atomsieve.errors import AtomSieveError
    from atomsieve.serve.installation import find_server
    from atomsieve.serve.repository.layout import RepositoryModel, parse_named_folders
    from atomsieve.serve.repository.write import write_repository

    try:
        server = find_server() if model.graph_backend == "auto" else None
    except AtomSieveError:  # none here; the repository is for another machine
        server = None
    return write_repository(
        out,
        [RepositoryModel(name, path, settings) for name, path in parse_named_folders(folders)],
        version=version,
        instances=model.instances,
        gpus=gpus,
        queue_delay=model.queue_delay,
        overwrite=overwrite,
        graph_backend=model.graph_backend,
        server=server,
    )


def _run(
    options: ServerOptions,
    warnings: list[str],
    listening: Listening,
    watch: o.WatchOptions,
    program: Path | None,
    threads: int | None,
    scratch: Path,
    device: str,
    build: Callable[[], None] | None,
) -> int:
    """Serve a repository in the foreground. build : makes it first. device : that its models are made for."""
    import os
    import sys
    from dataclasses import replace

    from atomsieve.runs.environment import drop_own_threads
    from atomsieve.serve.installation import find_server
    from atomsieve.serve.logs import Log
    from atomsieve.serve.server.access import require_free_ports
    from atomsieve.serve.server.start import (
        format_check_command,
        list_models,
        ports_by_address,
        public_urls,
        require_gpu,
    )
    from atomsieve.serve.server.supervisor import ServerSupervisor

    for address, ports in ports_by_address(options).items():
        require_free_ports(address, ports)
    server = find_server(program)
    form = watch.log or ("text" if sys.stderr.isatty() else "json")
    log = Log(sys.stderr, form, watch.log_file, (options.admin, options.token))

    def ready() -> None:
        for kind, url in public_urls(options).items():
            print(f"{kind}: {url}")
        print(f"try: {format_check_command(options, listening, options.models[0])}", flush=True)

    try:
        for text in warnings:
            log.event("exposed", "warning", text=text)
        require_gpu(options.repository, device)
        if build is not None:
            log.event("writing", text="a model repository of its own, removed at the end")
            build()
            options = replace(options, models=tuple(list_models(options.repository)))
        return ServerSupervisor(
            server,
            options,
            log,
            check_seconds=watch.check_seconds,
            answer_seconds=watch.answer_seconds,
            start_seconds=watch.start_seconds,
            max_restarts=watch.max_restarts,
            threads=threads,
            on_ready=ready,
            scratch=[scratch],
            environ=drop_own_threads(dict(os.environ)),
        ).run()
    finally:
        log.close()
