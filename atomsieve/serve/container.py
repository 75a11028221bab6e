"""The same server in a container: the exact command line for Docker or Apptainer, to run or to print."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

from atomsieve.errors import AtomSieveError, unknown
from atomsieve.serve.exposure import is_loopback
from atomsieve.serve.server import ServerOptions
from atomsieve.serve.start import Listening

ENGINES = ("docker", "apptainer")
IMAGES = {"docker": "atomsieve:cpu", "apptainer": "atomsieve.sif"}
"""What the files in containers/ make."""
MODELS, SECRETS = "/models", "/run/secrets"


def container_command(
    engine: str,
    image: str | None,
    options: ServerOptions,
    listening: Listening,
    more: list[str],
    *,
    gpus: bool = False,
) -> list[str]:
    """Return the command line that serves a repository in a container.

    Inside, a supervisor runs as it does outside. Docker publishes the ports on the address that was asked for, which
    is this machine's own unless --listen says otherwise; Apptainer shares the network of the machine. The repository
    and every secret are mounted read-only, and nothing runs as root.

    more : options that are passed on to `atomsieve serve start`.

    Raises
    ------
    UsageError
        for an unknown engine.
    """
    if engine not in ENGINES:
        raise unknown("container engine", engine, ENGINES)
    o, w = options, listening
    mounts = {MODELS: o.repository.resolve()}
    inside = ["atomsieve", "serve", "start", "--repository", MODELS, "--grpc-port", str(o.grpc)]
    http = o.http if not o.http_private else 0
    inside += ["--http-port", str(http), "--metrics-port", str(o.metrics), *more]
    files = {
        "--token-file": (w.token_file, "atomsieve-token"), "--tls-cert": (w.tls_cert, "tls.crt"),
        "--tls-key": (w.tls_key, "tls.key"), "--tls-client-ca": (w.tls_client_ca, "client-ca.crt"),
    }  # fmt: skip
    for option, (path, name) in files.items():
        if path is not None:
            mounts[f"{SECRETS}/{name}"] = path.resolve()
            inside += [option, f"{SECRETS}/{name}"]
    if engine == "apptainer":
        line = ["apptainer", "exec", "--containall", "--no-home", *(["--nv"] if gpus else [])]
        for target, path in mounts.items():
            line += ["--bind", f"{path}:{target}:ro"]
        listen = ["--listen", w.address] if not is_loopback(w.address) else []
        return [*line, image or IMAGES[engine], *inside, *listen, *(["--insecure"] if w.insecure else [])]
    line = ["docker", "run", "--rm", "--init", "--shm-size", "1g", "--read-only", "--tmpfs", "/tmp:exec",  # noqa: S108 - the stub of a model lies there
            "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]  # fmt: skip
    if os.getuid() != 0:  # the token file belongs to this user; the image's own user is not root either
        line += ["--user", f"{os.getuid()}:{os.getgid()}"]
    for port in filter(None, (o.grpc, http, o.metrics)):
        line += ["--publish", f"{w.address}:{port}:{port}"]
    for target, path in mounts.items():
        line += ["--mount", f"type=bind,source={path},target={target},readonly"]
    line += ["--gpus", "all"] if gpus else []
    # inside, it listens to the container's own network; who gets there is decided by the address published above
    open_to_all = ["--insecure"] if w.token_file is None and w.tls_client_ca is None else []
    return [*line, image or IMAGES[engine], *inside, "--listen", "0.0.0.0", *open_to_all]  # noqa: S104


def run_in_foreground(line: list[str]) -> int:
    """Run a command, pass signals on to it, and return its exit code."""
    process = subprocess.Popen(line, start_new_session=True)
    before = {
        number: signal.signal(number, lambda number, frame: process.send_signal(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def find_engine(name: str) -> Path:
    """Return the program of a container engine.

    Raises
    ------
    AtomSieveError
        if it is not there.
    """
    found = shutil.which(name)
    if found is None:
        raise AtomSieveError(
            f"{name} is not on the PATH; install it, show the command with --print, or leave --container out"
        )
    return Path(found)
