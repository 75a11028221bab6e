"""`atomsieve serve repository`, `atomsieve serve start` and `atomsieve serve check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atomsieve.cli import serve_options as o
from atomsieve.cli.common import (
    IN_OUT,
    TlsCaOption,
    TlsCertOption,
    TlsKeyOption,
    TokenFileOption,
    console,
    credentials,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from atomsieve.serve.server.process import ServerOptions
    from atomsieve.serve.server.start import Listening

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Serve an ensemble with a Triton Inference Server: `atomsieve serve start gfm/`.",
)


@app.command("repository")
def repository(
    folders: o.Folders,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="The model repository; a new model or version is added to it.", rich_help_panel=IN_OUT
        ),
    ] = Path("model_repository"),
    version: o.Version = 1,
    overwrite: o.Overwrite = False,
    precision: o.Precision = "fp32",
    backend: o.Backend = "python",
    head: o.Head = None,
    device: o.Device = "cpu",
    instances: o.Instances = 1,
    gpus: o.Gpus = "",
    threads: o.Threads = None,
    queue_delay: o.QueueDelay = 0,
    graph_backend: o.GraphBackend = "auto",
    max_request_atoms: o.RequestAtoms = 200_000,
    max_request_structures: o.RequestStructures = 65_536,
    max_request_bytes: o.RequestBytes = 64 * 2**20,
    max_structure_atoms: o.StructureAtoms = 20_000,
) -> None:
    """Write a model repository for a Triton Inference Server; it is complete, ensembles included."""
    settings = _settings(
        precision,
        backend,
        head,
        device,
        threads,
        max_request_atoms,
        max_request_structures,
        max_request_bytes,
        max_structure_atoms,
    )
    numbers = _checked(folders, settings, gpus)
    console(stderr=True).print(f"writing {out} ...", highlight=False, soft_wrap=True, markup=False)
    written = _build(out, folders, settings, version, instances, numbers, queue_delay, overwrite, graph_backend)
    shown = console()
    for place in written:
        shown.print(f"wrote {place}", highlight=False, soft_wrap=True, markup=False)
    shown.print(f"next: atomsieve serve start --repository {out}", highlight=False, soft_wrap=True, markup=False)


@app.command("start")
def start(
    context: typer.Context,
    folders: Annotated[
        list[str] | None,
        typer.Argument(
            help="Ensemble folders (gfm/), each as PATH or NAME=PATH.", metavar="[FOLDER...]", show_default=False
        ),
    ] = None,
    repository: o.Given = None,
    precision: o.Precision = "fp32",
    backend: o.Backend = "python",
    head: o.Head = None,
    device: o.Device = "cpu",
    instances: o.Instances = 1,
    gpus: o.Gpus = "",
    threads: o.Threads = None,
    queue_delay: o.QueueDelay = 0,
    graph_backend: o.GraphBackend = "none",
    max_request_atoms: o.RequestAtoms = 200_000,
    max_request_structures: o.RequestStructures = 65_536,
    max_request_bytes: o.RequestBytes = 64 * 2**20,
    max_structure_atoms: o.StructureAtoms = 20_000,
    listen: o.Listen = "127.0.0.1",
    grpc_port: o.GrpcPort = 8001,
    http_port: o.HttpPort = None,
    metrics_port: o.MetricsPort = 8002,
    token_file: o.TokenFile = None,
    insecure: o.Insecure = False,
    tls_cert: o.TlsCert = None,
    tls_key: o.TlsKey = None,
    tls_client_ca: o.TlsClientCa = None,
    check_seconds: o.CheckSeconds = 10.0,
    answer_seconds: o.AnswerSeconds = 30.0,
    start_seconds: o.StartSeconds = 600.0,
    drain_seconds: o.DrainSeconds = 30,
    max_restarts: o.MaxRestarts = 5,
    log: o.LogForm = None,
    log_file: o.LogFile = None,
    tritonserver: o.Program = None,
) -> int:
    """Start a Triton server, check it by true inference, and watch over it until it is asked to end.

    It answers on 127.0.0.1 alone unless --listen says otherwise. SIGTERM or Ctrl-C lets running requests finish.
    """
    from tempfile import TemporaryDirectory

    from atomsieve.errors import UsageError
    from atomsieve.serve.server.start import Listening, list_models, server_options

    if bool(folders) == (repository is not None):
        raise UsageError("name either ensemble folders to serve, or a model repository with --repository")
    if repository is not None:
        _refuse_unused([p.opts[-1] for p in context.command.params if _was_given(context, p.name)])
    listening = Listening(
        listen, grpc_port, http_port, metrics_port, token_file, insecure, tls_cert, tls_key, tls_client_ca
    )
    watch: dict[str, Any] = {
        "check_seconds": check_seconds,
        "answer_seconds": answer_seconds,
        "start_seconds": start_seconds,
        "max_restarts": max_restarts,
    }
    # what is cheap to check comes first: writing a repository takes seconds
    settings = _settings(
        precision,
        backend,
        head,
        device,
        threads,
        max_request_atoms,
        max_request_structures,
        max_request_bytes,
        max_structure_atoms,
    )
    with TemporaryDirectory(prefix="atomsieve-serve-") as scratch:
        place = repository if repository is not None else Path(scratch) / "models"
        models = list_models(place) if repository is not None else []  # known when they are written
        options, warnings = server_options(place, models, listening, drain_seconds)

        def build() -> None:
            if folders:
                place.mkdir()
                numbers = _checked(folders, settings, gpus)
                _build(place, folders, settings, 1, instances, numbers, queue_delay, False, graph_backend)

        return _run(
            options,
            warnings,
            listening,
            watch,
            tritonserver,
            threads,
            log,
            log_file,
            Path(scratch),
            settings.device,
            build if folders else None,
        )


@app.command("check")
def check(
    url: Annotated[str, typer.Argument(help="grpc://HOST:PORT, or grpcs, http, https.", show_default=False)],
    model: o.Model = "gfm",
    ensemble: o.Ensemble = None,
    heads: o.Heads = None,
    token_file: TokenFileOption = None,
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    seconds: o.Timeout = 60.0,
    quiet: o.Quiet = False,
) -> None:
    """Send the test vector of the ensemble to a server and compare what comes back: more than readiness."""
    from atomsieve.serve.check import check_endpoint

    shown = credentials(token_file, tls_ca, tls_cert, tls_key)
    found = check_endpoint(url, model=model, credentials=shown, ensemble=ensemble, heads=heads, seconds=seconds)
    if not quiet:
        screen = console()
        for key, value in found.items():
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            screen.print(f"{key}: {text}", highlight=False, soft_wrap=True, markup=False)
        screen.print("sound: every answer to the test vector is right", highlight=False, soft_wrap=True)


def _was_given(context: typer.Context, name: str | None) -> bool:
    source = context.get_parameter_source(name or "")
    return source is not None and source.name == "COMMANDLINE"


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


def _settings(
    precision: str,
    backend: str,
    head: str | None,
    device: str,
    threads: int | None,
    atoms: int,
    structures: int,
    size: int,
    structure_atoms: int,
) -> Any:
    import re

    from atomsieve.errors import UsageError, unknown
    from atomsieve.gfm.backends import SERVED_BACKENDS
    from atomsieve.models.precision import check_precision
    from atomsieve.serve.model.settings import Limits, Settings

    check_precision(precision)
    if backend not in SERVED_BACKENDS:
        raise unknown("backend", backend, SERVED_BACKENDS)
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", device):
        raise UsageError(f"unknown device {device!r}; allowed: auto, cpu, cuda, cuda:N")
    if device == "auto":
        from atomsieve.predict.backends.select import choose_device

        device = choose_device(device).type
    limits = Limits(structures=structures, atoms=atoms, bytes=size, structure_atoms=structure_atoms)
    return Settings.model_validate(
        {
            "precision": precision,
            "backend": SERVED_BACKENDS[backend],
            "head": head,
            "device": device,
            "threads": threads,
            "limits": limits,
        }
    )


def _checked(folders: list[str], settings: Any, gpus: str) -> list[int]:
    """Return the numbers of the GPUs; look at them and at the head before anything is loaded."""
    from atomsieve.errors import UsageError, unknown
    from atomsieve.gfm import read_manifest
    from atomsieve.serve.repository.layout import parse_named_folders

    numbers = [word for word in gpus.replace(",", " ").split() if word]
    if not all(word.isdigit() for word in numbers):
        raise UsageError(f"--gpus takes numbers, e.g. 0,1, got {gpus!r}")
    if numbers and settings.device != "cuda":
        raise UsageError("--gpus goes with --device cuda")
    for _, path in parse_named_folders(folders):
        heads = [head.name for head in read_manifest(path).heads]
        if settings.head is not None and settings.head not in heads:
            raise unknown("head", settings.head, heads)
    return [int(word) for word in numbers]


def _build(
    out: Path,
    folders: list[str],
    settings: Any,
    version: int,
    instances: int,
    gpus: list[int],
    queue_delay: int,
    overwrite: bool,
    graph_backend: str,
) -> list[Path]:
    """Write the models into a repository; return their version folders."""
    from atomsieve.errors import AtomSieveError
    from atomsieve.serve.installation import find_server
    from atomsieve.serve.repository.layout import RepositoryModel, parse_named_folders
    from atomsieve.serve.repository.write import write_repository

    try:
        server = find_server() if graph_backend == "auto" else None
    except AtomSieveError:  # none here; the repository is for another machine
        server = None
    return write_repository(
        out,
        [RepositoryModel(name, path, settings) for name, path in parse_named_folders(folders)],
        version=version,
        instances=instances,
        gpus=gpus,
        queue_delay=queue_delay,
        overwrite=overwrite,
        graph_backend=graph_backend,
        server=server,
    )


def _run(
    options: ServerOptions,
    warnings: list[str],
    listening: Listening,
    watch: dict[str, Any],
    program: Path | None,
    threads: int | None,
    form: str | None,
    log_file: Path | None,
    scratch: Path,
    device: str,
    build: Callable[[], None] | None,
) -> int:
    """Serve a repository in the foreground. build : makes it first. device : that its models are made for."""
    import os
    import sys
    from dataclasses import replace

    from atomsieve.cli.launch import without_own_threads
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
    form = form or ("text" if sys.stderr.isatty() else "json")
    log = Log(sys.stderr, form, log_file, (options.admin, options.token))

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
            check_seconds=watch["check_seconds"],
            answer_seconds=watch["answer_seconds"],
            start_seconds=watch["start_seconds"],
            max_restarts=watch["max_restarts"],
            threads=threads,
            on_ready=ready,
            scratch=[scratch],
            environ=without_own_threads(dict(os.environ)),
        ).run()
    finally:
        log.close()
