"""Options of `atomsieve serve`: one spelling, one help text and one panel for each; and their groups."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atomsieve.cli.common import IN_OUT, MODEL, WORK
from atomsieve.gfm.backends import FORMATS, SERVED_BACKENDS
from atomsieve.models.precision import PRECISIONS
from atomsieve.text import join_choices

if TYPE_CHECKING:
    from atomsieve.serve.model.settings import Settings
    from atomsieve.serve.server.start import Listening

EXPORTED = [shown for shown, name in SERVED_BACKENDS.items() if name in FORMATS]
LIMITS, WHO, WHERE, WATCH = "What a request may hold", "Who may use it", "Where it listens", "How it is watched"

Folders = Annotated[
    list[str],
    typer.Argument(
        help="Ensemble folders (gfm/), each as PATH or NAME=PATH; one without a name is `gfm`.",
        metavar="FOLDER...",
        show_default=False,
    ),
]
Precision = Annotated[str, typer.Option("--precision", help=f"{join_choices(PRECISIONS)}.", rich_help_panel=MODEL)]
Backend = Annotated[
    str,
    typer.Option(
        "--backend",
        help=f"python, or where `atomsieve export` made one: {join_choices(EXPORTED)}.",
        rich_help_panel=MODEL,
    ),
]
Head = Annotated[
    str | None,
    typer.Option(
        "--head",
        help="Head of requests that name none. [default: the ensemble's own]",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        help="cpu, cuda (each copy on a GPU of its own), cuda:N, or auto (cuda if there is a GPU).",
        rich_help_panel=WORK,
    ),
]
Instances = Annotated[
    int, typer.Option("--instances", help="Copies on the CPU, or on each GPU.", rich_help_panel=WORK, min=1)
]
Gpus = Annotated[
    str,
    typer.Option(
        "--gpus", help="With cuda: the GPUs to use, e.g. 0,1. [default: all]", rich_help_panel=WORK, show_default=False
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        help="CPU threads of a copy. [default: a share of all cores]",
        rich_help_panel=WORK,
        min=1,
        show_default=False,
    ),
]
GraphBackend = Annotated[
    str,
    typer.Option(
        "--graph-backend",
        help="With --backend onnx or libtorch, what runs the models for ready graphs: triton (its own backend), python "
        "(which checks graphs), auto (the first if a tritonserver here has it), none (no such models).",
        rich_help_panel=WORK,
        metavar="auto|triton|python|none",
    ),
]
QueueDelay = Annotated[
    int,
    typer.Option(
        "--queue-delay",
        help="Microseconds that a request waits for others to be computed with.",
        rich_help_panel=WORK,
        min=0,
    ),
]
RequestAtoms = Annotated[
    int, typer.Option("--max-request-atoms", help="Atoms of a request.", rich_help_panel=LIMITS, min=1)
]
RequestStructures = Annotated[
    int, typer.Option("--max-request-structures", help="Structures of a request.", rich_help_panel=LIMITS, min=1)
]
RequestBytes = Annotated[
    int, typer.Option("--max-request-bytes", help="Bytes of a request's tensors.", rich_help_panel=LIMITS, min=1024)
]
StructureAtoms = Annotated[
    int,
    typer.Option(
        "--max-structure-atoms", help="Atoms of a structure; one above has no result.", rich_help_panel=LIMITS, min=1
    ),
]
Version = Annotated[
    int, typer.Option("--version", help="Version of the models.", rich_help_panel=IN_OUT, min=1, max=2**31)
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace a version that is there.", rich_help_panel=IN_OUT)
]
Given = Annotated[
    Path | None,
    typer.Option(
        "--repository",
        help="Serve this model repository instead of folders.",
        rich_help_panel=IN_OUT,
        show_default=False,
    ),
]
Listen = Annotated[
    str,
    typer.Option(
        "--listen",
        help="Address of this machine; another than 127.0.0.1 lets other machines in.",
        rich_help_panel=WHERE,
    ),
]
GrpcPort = Annotated[int, typer.Option("--grpc-port", help="Port for gRPC.", rich_help_panel=WHERE, min=1, max=65535)]
HttpPort = Annotated[
    int | None,
    typer.Option(
        "--http-port",
        help="Port for HTTP, 0 for none. [default: 8000; none with TLS, or where others are let in]",
        rich_help_panel=WHERE,
        min=0,
        max=65535,
        show_default=False,
    ),
]
MetricsPort = Annotated[
    int,
    typer.Option(
        "--metrics-port", help="Port for Prometheus metrics, 0 for none.", rich_help_panel=WHERE, min=0, max=65535
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        help="File with a secret that every request must carry.",
        rich_help_panel=WHO,
        show_default=False,
    ),
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Let everybody who reaches the address use the server.", rich_help_panel=WHO)
]
TlsCert = Annotated[
    Path | None,
    typer.Option(
        "--tls-cert", help="PEM file: the server's certificate (gRPC).", rich_help_panel=WHO, show_default=False
    ),
]
TlsKey = Annotated[
    Path | None, typer.Option("--tls-key", help="PEM file: its key.", rich_help_panel=WHO, show_default=False)
]
TlsClientCa = Annotated[
    Path | None,
    typer.Option(
        "--tls-client-ca",
        help="PEM file: clients need a certificate signed by it.",
        rich_help_panel=WHO,
        show_default=False,
    ),
]
CheckSeconds = Annotated[
    float, typer.Option("--check-seconds", help="Between checks by true inference.", rich_help_panel=WATCH, min=0.1)
]
AnswerSeconds = Annotated[
    float, typer.Option("--answer-seconds", help="That a check waits for its answer.", rich_help_panel=WATCH, min=0.1)
]
StartSeconds = Annotated[
    float, typer.Option("--start-seconds", help="Until all models of a server answer.", rich_help_panel=WATCH, min=1)
]
DrainSeconds = Annotated[
    int, typer.Option("--drain-seconds", help="For running requests after SIGTERM.", rich_help_panel=WATCH, min=1)
]
MaxRestarts = Annotated[
    int, typer.Option("--max-restarts", help="Of a failing server in a row.", rich_help_panel=WATCH, min=0)
]
LogForm = Annotated[
    str | None,
    typer.Option(
        "--log",
        help="json or text. [default: text in a terminal, else json]",
        rich_help_panel=WATCH,
        show_default=False,
    ),
]
LogFile = Annotated[
    Path | None,
    typer.Option("--log-file", help="A file that gets JSON records too.", rich_help_panel=WATCH, show_default=False),
]
Program = Annotated[
    Path | None,
    typer.Option(
        "--tritonserver",
        help="The server's program. [default: what is found]",
        rich_help_panel=WORK,
        show_default=False,
    ),
]
Model = Annotated[str, typer.Option("--model", help="Name of the served model.", rich_help_panel=MODEL)]
Ensemble = Annotated[
    Path | None,
    typer.Option(
        "--ensemble", help="The ensemble folder that it must serve.", rich_help_panel=MODEL, show_default=False
    ),
]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds for each answer.", rich_help_panel=WORK, min=0.1)]
Quiet = Annotated[bool, typer.Option("--quiet", help="Say nothing if all is well.", rich_help_panel=WORK)]
Heads = Annotated[
    list[str] | None,
    typer.Option(
        "--head", help="Head to test; may be repeated. [default: all]", rich_help_panel=MODEL, show_default=False
    ),
]


@dataclass(frozen=True)
class RequestLimitOptions:
    """Limits of one request."""

    max_request_atoms: RequestAtoms = 200_000
    max_request_structures: RequestStructures = 65_536
    max_request_bytes: RequestBytes = 64 * 2**20
    max_structure_atoms: StructureAtoms = 20_000


@dataclass(frozen=True)
class ModelOptions:
    """How the models of a repository run."""

    precision: Precision = "fp32"
    backend: Backend = "python"
    head: Head = None
    device: Device = "cpu"
    instances: Instances = 1
    gpus: Gpus = ""
    threads: Threads = None
    queue_delay: QueueDelay = 0
    graph_backend: GraphBackend = "auto"
    limits: RequestLimitOptions = field(default_factory=RequestLimitOptions)

    def settings(self) -> Settings:
        """Return the settings of the served models.

        Raises
        ------
        UsageError
            for an unknown precision, backend or device.
        """
        from atomsieve.errors import UsageError, unknown
        from atomsieve.models.precision import check_precision
        from atomsieve.serve.model.settings import Limits, Settings

        check_precision(self.precision)
        if self.backend not in SERVED_BACKENDS:
            raise unknown("backend", self.backend, SERVED_BACKENDS)
        device = self.device
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", device):
            raise UsageError(f"unknown device {device!r}; allowed: auto, cpu, cuda, cuda:N")
        if device == "auto":
            from atomsieve.devices import choose_device

            device = choose_device(device).type
        limits = Limits(
            structures=self.limits.max_request_structures,
            atoms=self.limits.max_request_atoms,
            bytes=self.limits.max_request_bytes,
            structure_atoms=self.limits.max_structure_atoms,
        )
        return Settings.model_validate(
            {
                "precision": self.precision,
                "backend": SERVED_BACKENDS[self.backend],
                "head": self.head,
                "device": device,
                "threads": self.threads,
                "limits": limits,
            }
        )

    def gpu_numbers(self, device: str) -> list[int]:
        """Return the numbers of the GPUs to use; none means all.

        Raises
        ------
        UsageError
            if they are no numbers, or `device` is not cuda.
        """
        from atomsieve.errors import UsageError

        numbers = [word for word in self.gpus.replace(",", " ").split() if word]
        if not all(word.isdigit() for word in numbers):
            raise UsageError(f"--gpus takes numbers, e.g. 0,1, got {self.gpus!r}")
        if numbers and device != "cuda":
            raise UsageError("--gpus goes with --device cuda")
        return [int(word) for word in numbers]


@dataclass(frozen=True)
class ListenOptions:
    """Where the server listens and whom it lets in."""

    listen: Listen = "127.0.0.1"
    grpc_port: GrpcPort = 8001
    http_port: HttpPort = None
    metrics_port: MetricsPort = 8002
    token_file: TokenFile = None
    insecure: Insecure = False
    tls_cert: TlsCert = None
    tls_key: TlsKey = None
    tls_client_ca: TlsClientCa = None

    def listening(self) -> Listening:
        """Return them as the library takes them."""
        from atomsieve.serve.server.start import Listening

        return Listening(
            self.listen,
            self.grpc_port,
            self.http_port,
            self.metrics_port,
            self.token_file,
            self.insecure,
            self.tls_cert,
            self.tls_key,
            self.tls_client_ca,
        )


@dataclass(frozen=True)
class WatchOptions:
    """How the supervisor checks and restarts the server, and where it logs."""

    check_seconds: CheckSeconds = 10.0
    answer_seconds: AnswerSeconds = 30.0
    start_seconds: StartSeconds = 600.0
    drain_seconds: DrainSeconds = 30
    max_restarts: MaxRestarts = 5
    log: LogForm = None
    log_file: LogFile = None
