"""Who may reach a server: addresses, the token in its file, TLS, and secrets kept out of the list of processes."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from atomsieve.errors import AtomSieveError, UsageError
from atomsieve.serve.server.process import ServerOptions


def is_loopback(address: str) -> bool:
    """Return whether only this machine can reach an address."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return False


def check_exposure(options: ServerOptions, insecure: bool) -> list[str]:
    """Return warnings about who may reach a server and read its traffic.

    Raises
    ------
    UsageError
        if other machines could use it without --insecure, or TLS files are incomplete.
    """
    o = options
    if (o.tls_cert is None) != (o.tls_key is None) or (o.tls_client_ca is not None and o.tls_cert is None):
        raise UsageError("TLS needs --tls-cert and --tls-key together (--tls-client-ca is given on top of them)")
    for path in (o.tls_cert, o.tls_key, o.tls_client_ca):
        if path is not None and not os.access(path, os.R_OK):
            raise UsageError(f"{path} cannot be read; give a PEM file")
    if o.tls_client_ca is not None and o.token is None and o.http and not o.http_private and not insecure:
        raise UsageError(
            f"HTTP on port {o.http} asks for no certificate, so --tls-client-ca guards gRPC alone; leave --http-port "
            "out, or say who may use it with --token-file FILE, or that everybody may with --insecure"
        )
    if is_loopback(o.address):
        return []
    if o.token is None and o.tls_client_ca is None and not insecure:
        raise UsageError(
            f"--listen {o.address} lets other machines in; say who may use the server with --token-file FILE (or "
            "--tls-client-ca FILE), or that everybody may with --insecure"
        )
    found = []
    if o.token is None and o.tls_client_ca is None:
        found.append(f"everybody who reaches {o.address} may use this server (--insecure)")
    elif o.token is not None and o.tls_cert is None:
        found.append("the token goes over the network unencrypted: give --tls-cert and --tls-key, or use a proxy")
    if o.address == "0.0.0.0":  # noqa: S104
        found.append("gRPC takes 0.0.0.0 for every IPv6 address (::) too; name one address of this machine to avoid it")
    found.append(
        "a request is received whole before its token or size is looked at; where strangers may connect, let a proxy "
        "limit bodies and connections"
    )
    if o.metrics:
        found.append(f"the metrics page on {o.address}:{o.metrics} asks for no token; --metrics-port 0 turns it off")
    return found


def conceal_secrets(pid: int, secrets: Iterable[str]) -> bool:
    """Overwrite secrets in the command line that the list of processes shows for `pid`; return whether none is left.

    The server takes secrets on its command line alone. It copies them before it writes its first line, so this is
    called after that line. It works for a process of the same user that is a descendant of the caller.
    """
    wanted = [s.encode() for s in secrets if s]
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        start, stop = int(fields[45]), int(fields[46])  # arg_start, arg_end: see proc(5)
        with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            line = memory.read(stop - start)
            for secret in wanted:
                at = line.find(secret)
                while at >= 0:
                    memory.seek(start + at)
                    memory.write(b"*" * len(secret))
                    at = line.find(secret, at + len(secret))
        shown = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError, IndexError):
        return False
    return not any(secret in shown for secret in wanted)


def is_answered_by(host: str, port: int, group: Iterable[int]) -> bool:
    """Return whether only processes of a group listen on a TCP port of this machine.

    While a server is down, any user of the machine may listen on its port; no secret must be sent there.
    """
    sockets, answers = set(), _kernel_forms(host)
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()  # see proc(5): local address, ..., state 0A: listens, ..., inode
                at, _, number = fields[1].rpartition(":")
                if fields[3] == "0A" and int(number, 16) == port and at in answers:
                    sockets.add(f"socket:[{fields[9]}]")
    held = set()
    for pid in group:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    held.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    return bool(sockets) and sockets <= held


def _kernel_forms(host: str) -> set[str]:
    """Return an address as the kernel's tables write it, and the forms of the wildcard addresses."""
    import socket

    every = {"0" * 8, "0" * 32}
    packed = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host.strip("[]"))
    words = "".join(f"{int.from_bytes(packed[k : k + 4], sys.byteorder):08X}" for k in range(0, len(packed), 4))
    mapped = f"{int.from_bytes(bytes.fromhex('0000FFFF'), sys.byteorder):08X}"
    return every | {words} | ({"0" * 16 + mapped + words} if len(words) == 8 else set())


def require_free_ports(address: str, ports: dict[str, int]) -> None:
    """Check that ports can be listened on.

    Raises
    ------
    AtomSieveError
        naming the option of the one that cannot.
    """
    import socket

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    taken: dict[int, str] = {}
    for option, port in ports.items():
        if port == 0:
            continue
        if port in taken:
            raise UsageError(f"{taken[port]} and {option} are both {port}; give each a port of its own")
        taken[port] = option
        with socket.socket(family) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind((address.strip("[]"), port))
            except (OSError, OverflowError) as error:
                why = getattr(error, "strerror", None) or error
                message = f"cannot listen on {address} port {port} ({why}); choose another: {option}"
                raise AtomSieveError(message) from error
