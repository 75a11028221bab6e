"""From the options of `atomsieve serve start` to the options of a supervised server."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atomsieve.errors import AtomSieveError, UsageError
from atomsieve.remote.credentials import Credentials, read_token
from atomsieve.serve.graph.removed import find_removed_models, removal_advice
from atomsieve.serve.server.access import check_exposure, is_loopback
from atomsieve.serve.server.process import ServerOptions, find_free_ports


@dataclass(frozen=True)
class Listening:
    """Where a server listens and whom it lets in, as the command line gives it.

    Attributes
    ----------
    address : one of this machine. grpc, http, metrics : ports; http None for the usual one, unless there is TLS or
        other machines are let in; 0 for none of http and metrics.
    token_file, tls_cert, tls_key, tls_client_ca : files. insecure : everybody may use it.
    """

    address: str = "127.0.0.1"
    grpc: int = 8001
    http: int | None = None
    metrics: int = 8002
    token_file: Path | None = None
    insecure: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None


def server_options(
    repository: Path, models: Sequence[str], listening: Listening, drain_seconds: int = 30
) -> tuple[ServerOptions, list[str]]:
    """Return the options of the server, with a new secret of the supervisor, and warnings about access.

    Raises
    ------
    UsageError
        if other machines could use the server without --insecure, or an option does not fit.
    """
    w = listening
    if w.grpc == 0:
        raise UsageError("--grpc-port must be 1 to 65535; gRPC is always on")
    tls = w.tls_cert is not None
    private = tls and not w.http
    usual = 8000 if is_loopback(w.address) else 0  # a body over HTTP is received whole before the token is checked
    options = ServerOptions(
        repository,
        tuple(models),
        address=_resolve_address(w.address),
        grpc=w.grpc,
        http=find_free_ports(1)[0] if private else usual if w.http is None else w.http,
        http_address="127.0.0.1" if tls else None,
        http_private=private,
        metrics=w.metrics,
        admin=secrets.token_hex(24),
        token=None if w.token_file is None else read_token(w.token_file),
        tls_cert=w.tls_cert,
        tls_key=w.tls_key,
        tls_client_ca=w.tls_client_ca,
        exit_seconds=drain_seconds,
        gpu=_has_gpu(),
    )
    warnings = check_exposure(options, w.insecure)
    Credentials(
        ca=w.tls_client_ca, cert=w.tls_cert, key=w.tls_key
    ).check_files()  # the server reports faults in them poorly
    return options, warnings


def list_models(repository: Path) -> list[str]:
    """Return the names of the models in a repository.

    Raises
    ------
    UsageError
        if there is none; AtomSieveError if some are of a kind that is no longer served.
    """
    found = sorted(p.parent.name for p in repository.glob("*/config.pbtxt")) if repository.is_dir() else []
    if not found:
        raise UsageError(
            f"{repository} is no model repository; make one with: atomsieve serve repository gfm/ --out {repository}"
        )
    if removed := find_removed_models(repository):
        raise AtomSieveError(f"{repository}: {removal_advice(removed)}")
    return found


def require_gpu(repository: Path, device: str) -> None:
    """Check that there is a GPU if models need one: those of a repository, or those to be made for `device`.

    Raises
    ------
    AtomSieveError
        if there is none; the server itself would report it later and less clearly.
    """
    from atomsieve.serve.model.settings import SETTINGS_FILE, Settings

    found = [Settings.read(path.parent).device for path in repository.glob(f"*/*/{SETTINGS_FILE}")]
    if not any(name.startswith("cuda") for name in (device, *found)):
        return
    import torch

    if not torch.cuda.is_available():
        remedy = "write it anew without --device" if found else "leave out --device, or say --device auto"
        subject = f"{repository} is for --device cuda" if found else f"--device {device}"
        raise AtomSieveError(f"{subject}, but there is no GPU here; {remedy}")


def public_urls(options: ServerOptions) -> dict[str, str]:
    """Return the addresses of a server, by protocol."""
    o = options
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(o.address, o.address)  # noqa: S104
    found = {"gRPC": f"grpc{'s' if o.tls_cert else ''}://{host}:{o.grpc}"}
    if o.http and not o.http_private:
        found["HTTP"] = f"http://{o.http_address or host}:{o.http}"
    if o.metrics:
        found["metrics"] = f"http://{host}:{o.metrics}/metrics"
    return found


def format_check_command(options: ServerOptions, listening: Listening, model: str) -> str:
    """Return the command that checks the server by its test vector."""
    words = ["atomsieve serve check", public_urls(options)["gRPC"]]
    if model != "gfm":
        words.append(f"--model {model}")
    if listening.token_file is not None:
        words.append(f"--token-file {listening.token_file}")
    if options.tls_cert is not None:
        words.append("--tls-ca CA.pem")
    if options.tls_client_ca is not None:
        words.append("--tls-cert CLIENT.pem --tls-key CLIENT.key")
    return " ".join(words)


def ports_by_address(options: ServerOptions) -> dict[str, dict[str, int]]:
    """Return the ports that must be free, by address and option."""
    o = options
    found = {o.address: {"--grpc-port": o.grpc, "--metrics-port": o.metrics}}
    found.setdefault(o.http_address or o.address, {})["--http-port"] = o.http
    return found


def _resolve_address(address: str) -> str:
    """Return a numeric address, as the server needs it."""
    if ":" in address:
        return f"[{address.strip('[]')}]"
    try:
        return socket.gethostbyname(address)
    except OSError as error:
        raise UsageError(
            f"--listen {address!r} is no address ({error.strerror}); give one of this machine, e.g. "
            "127.0.0.1, or 0.0.0.0 for all"
        ) from error


def _has_gpu() -> bool:
    return Path("/dev/nvidiactl").exists()
