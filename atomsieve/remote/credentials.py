"""Secrets and certificates that a client shows to a server, and the file that holds a token."""

from __future__ import annotations

import re
import ssl
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atomsieve.errors import UsageError
from atomsieve.remote.url import Url

GRPC_PREFIX = "triton-grpc-protocol-"


TOKEN_KEY, ADMIN_KEY = "atomsieve-token", "atomsieve-admin"
"""Headers that carry a secret: as they are over HTTP, behind `GRPC_PREFIX` over gRPC."""


@dataclass(frozen=True)
class Credentials:
    """Secrets and certificates of a client. ca, cert, key : PEM files. token, admin : secrets."""

    token: str | None = field(default=None, repr=False)
    admin: str | None = field(default=None, repr=False)
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def headers(self, url: Url) -> dict[str, str]:
        """Return the headers that carry the secrets."""
        prefix = GRPC_PREFIX if url.grpc else ""
        secrets = {TOKEN_KEY: self.token, ADMIN_KEY: self.admin}
        return {prefix + key: secret for key, secret in secrets.items() if secret is not None}

    def check_files(self) -> None:
        """Read the PEM files once: the clients' errors do not name a faulty file.

        Raises
        ------
        UsageError
            if one is not a readable PEM file of its kind.
        """
        context = ssl.create_default_context()
        readers: list[tuple[str, Path | None, Callable[[Path], Any]]] = [
            ("ca", self.ca, lambda path: context.load_verify_locations(path)),
            ("key", self.key, lambda path: path.open().close()),
            ("cert", self.cert, lambda path: context.load_cert_chain(path, self.key, password="")),
        ]
        for name, path, read in readers:
            try:
                if path is not None:
                    read(Path(path))
            except OSError as error:
                if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
                    raise UsageError(
                        f"{self.key} is not the key of the certificate {path}; give the one that belongs to it"
                    ) from error
                reason = error.strerror or error
                both = f"{path} with the key {self.key}" if name == "cert" and self.key else path
                raise UsageError(f"{both} cannot be used as TLS {name} ({reason}); give a readable PEM file") from error


SHORTEST_TOKEN = 16


TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")


def read_token(path: Path) -> str:
    """Return the token in a file that only its owner (and group) may read.

    Raises
    ------
    UsageError
        if there is none, others may read it, or it is too short or not one word.
    """
    try:
        mode, text = path.stat().st_mode, path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not text"
        raise UsageError(
            f"the token file {path} cannot be read ({why}); make one with: (umask 077; openssl rand -hex 32 > {path})"
        ) from error
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise UsageError(f"everybody on this machine may read the token file {path}; run: chmod 600 {path}")
    if len(text) < SHORTEST_TOKEN or not TOKEN.fullmatch(text):
        raise UsageError(
            f"the token in {path} must be one word of at least {SHORTEST_TOKEN} letters, digits or ._~+/=-, and has "
            f"{len(text)} characters{' of other kinds' if len(text) >= SHORTEST_TOKEN else ''}; make one with: "
            f"(umask 077; openssl rand -hex 32 > {path})"
        )
    return text
