"""Addresses of endpoints: `grpc://host:8001`, and lists of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from atomsieve.errors import UsageError

URL = re.compile(r"(?:(?P<scheme>[a-z]+)://)?(?P<host>\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+)(?::(?P<port>\d{1,5}))?/?")


PORTS = {"grpc": 8001, "grpcs": 8001, "http": 8000, "https": 443}


@dataclass(frozen=True)
class Url:
    """Where an endpoint is. scheme : grpc, grpcs (TLS), http or https."""

    scheme: str
    host: str
    port: int

    @property
    def grpc(self) -> bool:
        """Whether gRPC is spoken there, rather than HTTP."""
        return self.scheme.startswith("grpc")

    @property
    def target(self) -> str:
        """Host and port."""
        return f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.target}"


def parse_url(text: str, scheme: str = "grpc") -> Url:
    """Read `grpc://host:port`; without a scheme, `scheme` is meant, without a port the usual one.

    Raises
    ------
    UsageError
        for anything else.
    """
    match = URL.fullmatch(text.strip())
    found = (match["scheme"] or scheme) if match else ""
    port = int(match["port"] or PORTS.get(found, 0)) if match else 0
    if match is None or found not in PORTS or not 0 < port < 65536 or match["host"].isdigit():  # "h1:8001,8002"
        raise UsageError(f"{text!r} is no endpoint; give grpc://host:8001 (or grpcs, http, https)")
    return Url(found, match["host"], port)


def parse_urls(text: str | Sequence[str]) -> list[Url]:
    """Read endpoints: `grpc://h1:8001,h2:8001`, where a scheme holds for those that follow without one.

    Raises
    ------
    UsageError
        for a malformed endpoint, none at all, or one that is named twice.
    """
    urls: list[Url] = []
    scheme = "grpc"
    for part in text.split(",") if isinstance(text, str) else text:
        url = parse_url(part, scheme)
        if url in urls:
            raise UsageError(f"endpoint {url} is named twice")
        urls.append(url)
        scheme = url.scheme
    if not urls:
        raise UsageError("no endpoint given; give grpc://host:8001 (or grpcs, http, https)")
    return urls
