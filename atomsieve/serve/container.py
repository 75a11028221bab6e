"""The same server in a container: the exact command line for Docker or Apptainer, to run or to print."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from types import FrameType

from atomsieve.errors import AtomSieveError, unknown
from atomsieve.serve.server.access import is_loopback
from atomsieve.serve.server.process import ServerOptions
from atomsieve.serve.server.start import Listening

ENGINES = ("docker", "apptainer")
USER = 10001
"""The user of the images."""
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
        "--token-file": (w.token_file, "atomsieve-token"),
        "--tls-cert": (w.tls_cert, "tls.crt"),
        "--tls-key": (w.tls_key, "tls.key"),
        "--tls-client-ca": (w.tls_client_ca, "client-ca.crt"),
    }
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
    # docker would kill it 10 s after asking it to end
    line = [
        "docker",
        "run",
        "--rm",
        "--init",
        "--stop-timeout",
        str(o.exit_seconds + 15),
        "--shm-size",
        "1g",
        "--read-only",
        "--tmpfs",
        "/tmp:exec",  # noqa: S108 - the stub of a model lies there
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges",
    ]
    if os.getuid() != 0:  # the token file belongs to this user; the image's own user is not root either
        line += ["--user", f"{os.getuid()}:{os.getgid()}"]
    for port in filter(None, (o.grpc, http, o.metrics)):
        line += ["--publish", f"{o.address}:{port}:{port}"]
    for target, path in mounts.items():
        line += ["--mount", f"type=bind,source={path},target={target},readonly"]
    line += ["--gpus", "all"] if gpus else []
    # inside, it listens to the container's own network; who gets there is decided by the address published above
    open_to_all = ["--insecure"] if w.token_file is None and w.tls_client_ca is None else []
    return [*line, image or IMAGES[engine], *inside, "--listen", "0.0.0.0", *open_to_all]  # noqa: S104


def unreadable(options: ServerOptions, listening: Listening, user: int = USER) -> list[Path]:
    """Return what a container that runs as the image's own user could not read."""
    found = []
    w, repository = listening, options.repository
    files = [w.token_file, w.tls_cert, w.tls_key, w.tls_client_ca, repository, *repository.rglob("*")]
    for path in files:
        if path is not None and path.exists():
            state = path.stat()
            needs = 0o5 if path.is_dir() else 0o4
            mine = 6 if state.st_uid == user else 3 if state.st_gid == user else 0
            if state.st_mode >> mine & needs != needs:
                found.append(path)
    return found


def run_in_foreground(line: list[str]) -> int:
    """Run a command, pass signals on to it, and return its exit code."""
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        if process is None:
            early.append(number)
        else:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        process = subprocess.Popen(line, start_new_session=True)
        for number in early:
            process.send_signal(number)
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
