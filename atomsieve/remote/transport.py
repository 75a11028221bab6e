"""One endpoint, reached over gRPC or HTTP: arrays out, arrays in, and every way to fail as one of a few kinds."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError, UsageError, require
from atomsieve.remote.diagnostics import advised, why_unreachable
from atomsieve.remote.wire import INPUTS

GRPC_PREFIX = "triton-grpc-protocol-"
TOKEN_KEY, ADMIN_KEY = "atomsieve-token", "atomsieve-admin"
"""Headers that carry a secret: as they are over HTTP, behind `GRPC_PREFIX` over gRPC."""
PURPOSE = "asking a server"
PORTS = {"grpc": 8001, "grpcs": 8001, "http": 8000, "https": 443}
URL = re.compile(r"(?:(?P<scheme>[a-z]+)://)?(?P<host>\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+)(?::(?P<port>\d{1,5}))?/?")

RESTRICTED = re.compile(r"This (protocol|API) is restricted")
"""What the server says where a secret is missing or wrong."""


class EndpointError(AtomSieveError):
    """A request got no answer."""


class Unavailable(EndpointError):  # noqa: N818 - what the protocol calls it
    """Nobody answers there, or the server is full or starting: the same request may succeed later or elsewhere."""


class Broken(EndpointError):  # noqa: N818
    """The server failed inside: its model may have died. The same request may succeed later or elsewhere."""


class DeadlineExceeded(EndpointError):  # noqa: N818
    """There was no answer in time."""


class Denied(EndpointError):  # noqa: N818
    """The token or certificate is missing or wrong."""


class Rejected(EndpointError):  # noqa: N818
    """The request is wrong, and would be anywhere: the server says why."""


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


@dataclass(frozen=True)
class Credentials:
    """What a client shows and trusts. ca, cert, key : PEM files. token, admin : secrets."""

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
        """Read the PEM files once: what the clients say of a bad one does not name it.

        Raises
        ------
        UsageError
            if one cannot be read as what it should be.
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
                said = error.strerror or error
                both = f"{path} with the key {self.key}" if name == "cert" and self.key else path
                raise UsageError(f"{both} cannot be used as TLS {name} ({said}); give a readable PEM file") from error


class Transport:
    """A connection to one endpoint; threads may share it over gRPC.

    Parameters
    ----------
    url, credentials : where, and what to show. connections : requests that may run at once over HTTP.
    seconds : how long connecting over HTTP may take, at most; every request has its own deadline.

    Raises
    ------
    UsageError
        if a file for TLS cannot be read.
    """

    def __init__(
        self, url: Url, credentials: Credentials | None = None, *, connections: int = 4, seconds: float = 10.0
    ) -> None:
        self.url, self.credentials = url, credentials or Credentials()
        c = self.credentials
        c.check_files()
        self._headers = c.headers(url)
        if self.grpc:
            self._module = require("tritonclient.grpc", "serve", PURPOSE)
            self._client = self._module.InferenceServerClient(url.target, **grpc_options(url, c))
        else:
            self._module = require("tritonclient.http", "serve", PURPOSE)
            tls: dict[str, Any] = {}
            if url.scheme == "https":
                files = {"ca_certs": c.ca, "certfile": c.cert, "keyfile": c.key}
                tls = {"ssl": True, "ssl_options": {k: str(v) for k, v in files.items() if v is not None}}
            self._client = self._module.InferenceServerClient(
                url.target, concurrency=connections, connection_timeout=seconds, network_timeout=None, **tls
            )

    @property
    def grpc(self) -> bool:
        """Whether it speaks gRPC, rather than HTTP."""
        return self.url.grpc

    def infer(
        self,
        model: str,
        arrays: Mapping[str, NDArray[Any]],
        outputs: Sequence[str],
        parameters: Mapping[str, Any] | None = None,
        *,
        seconds: float = 60.0,
        version: str = "",
    ) -> dict[str, NDArray[Any]]:
        """Send tensors [1,...] and return the outputs without their leading axis.

        seconds : for the whole answer.

        Raises
        ------
        EndpointError
            of the kind that says whether trying again makes sense.
        """
        asked = request_options(self._module, arrays, outputs, parameters, seconds)
        found = self._call(self._client.infer, model, seconds=seconds, **asked, model_version=version)
        return answer_arrays(self.url, found, outputs)

    def load(self, model: str, seconds: float = 120.0) -> None:
        """Load a model, or load it again; needs the admin's secret."""
        self._call(self._client.load_model, model, seconds=seconds)

    def unload(self, model: str, seconds: float = 120.0) -> None:
        """Take a model out of service; needs the admin's secret."""
        self._call(self._client.unload_model, model, seconds=seconds)

    def metadata(self, seconds: float = 10.0) -> dict[str, Any]:
        """Return what the server says of itself."""
        more = {"as_json": True} if self.grpc else {}
        found: dict[str, Any] = self._call(self._client.get_server_metadata, seconds=seconds, **more)
        return found

    def models(self, seconds: float = 10.0) -> list[str]:
        """Return the names of the models in the repository; needs the admin's secret."""
        more = {"as_json": True} if self.grpc else {}
        found = self._call(self._client.get_model_repository_index, seconds=seconds, **more)
        return sorted(m["name"] for m in (found.get("models", []) if self.grpc else found))

    def is_ready(self, model: str, seconds: float = 10.0) -> bool:
        """Say whether the server calls a model ready, which it also does of one whose process has died."""
        return bool(self._call(self._client.is_model_ready, model, seconds=seconds))

    def close(self) -> None:
        """Give the connection up."""
        self._client.close()

    def __enter__(self) -> Transport:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _call(self, function: Any, *args: Any, seconds: float, **more: Any) -> Any:
        if self.grpc:
            from tritonclient.utils import InferenceServerException

            try:
                return function(*args, headers=self._headers, client_timeout=seconds, **more)
            except (InferenceServerException, OSError) as error:
                raise kind_of(self.url, error) from error
            except ValueError as error:
                if "closed channel" not in str(error):
                    raise
                raise Unavailable(f"{self.url}: the connection was closed") from error
        try:
            return _within(seconds, lambda: function(*args, headers=self._headers, **more))
        except Exception as error:  # what is no HTTP or no answer raises whatever the parsers stumble on
            raise kind_of(self.url, error) from error


def _within(seconds: float, work: Callable[[], Any]) -> Any:
    """Return what `work` returns; it waits in sockets of gevent alone.

    The timeouts of sockets hold for each piece that they receive, so a server that drips would be waited for for ever.

    Raises
    ------
    TimeoutError
        if it takes longer.
    """
    import gevent

    limit = gevent.Timeout.start_new(seconds)
    try:
        return work()
    except gevent.Timeout as reached:
        if reached is not limit:
            raise
        raise TimeoutError from None
    finally:
        limit.close()


def grpc_options(url: Url, credentials: Credentials) -> dict[str, Any]:
    """Return the arguments of a gRPC client.

    A connection of its own, and short pauses between attempts to connect: gRPC's own pauses grow to minutes, in which
    a server that is back would still be called away.
    """
    c = credentials
    channel = {
        "max_send_message_length": -1,
        "max_receive_message_length": -1,
        "use_local_subchannel_pool": 1,
        "initial_reconnect_backoff_ms": 100,
        "min_reconnect_backoff_ms": 1000,
        "max_reconnect_backoff_ms": 1000,
    }
    return {
        "ssl": url.scheme == "grpcs",
        "root_certificates": _name(c.ca),
        "private_key": _name(c.key),
        "certificate_chain": _name(c.cert),
        "channel_args": [(f"grpc.{key}", value) for key, value in channel.items()],
    }


def request_options(
    module: Any,
    arrays: Mapping[str, NDArray[Any]],
    outputs: Sequence[str],
    parameters: Mapping[str, Any] | None,
    seconds: float,
) -> dict[str, Any]:
    """Return what a client of `module` (of tritonclient) is told to send; arrays are tensors [1,...]."""
    inputs = []
    for name, values in arrays.items():
        tensor = module.InferInput(name, list(values.shape), INPUTS[name].datatype)
        tensor.set_data_from_numpy(np.ascontiguousarray(values))
        inputs.append(tensor)
    return {
        "inputs": inputs,
        "outputs": [module.InferRequestedOutput(name) for name in outputs],
        "timeout": int(seconds * 1e6),
        "parameters": dict(parameters or {}),
    }


def answer_arrays(url: Url, found: Any, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the outputs of an answer without their leading axis.

    Raises
    ------
    Broken
        if one is missing or makes no sense.
    """
    try:
        arrays = {name: found.as_numpy(name) for name in outputs}
    except Exception as error:  # of the library's parsers, which trust the answer
        raise kind_of(url, error) from error
    for name, values in arrays.items():
        if values is None or values.ndim == 0 or len(values) != 1:
            raise Broken(f"{url}: the answer lacks {name}")
    return {name: values[0] for name, values in arrays.items()}


def kind_of(url: Url, error: BaseException) -> EndpointError:
    """Return the error of a client as one of the kinds that tell whether trying again makes sense."""
    status = getattr(error, "status", lambda: None)()
    if status is None:  # the server said nothing, or nothing that makes sense
        why = _first_line(str(error)) or type(error).__name__
        if isinstance(error, TimeoutError):
            return DeadlineExceeded(f"{url}: no answer in time")
        if isinstance(error, HTTPException):
            return Unavailable(f"{url}: the connection was cut, or what answers there speaks no HTTP ({why})")
        if isinstance(error, OSError):
            why = why_unreachable(url.scheme, why) if isinstance(error, ssl.SSLError) else why
            return Unavailable(f"{url}: cannot be reached ({why})")
        return Broken(f"{url}: its answer cannot be read ({type(error).__name__}: {why})")
    code = str(status).removeprefix("StatusCode.")
    text = _first_line(getattr(error, "message", lambda: "")() or "")
    if RESTRICTED.match(text):  # which gRPC calls UNAVAILABLE
        return Denied(f"{url}: the token is missing or wrong ({text[:1].lower()}{text[1:]})")
    if NOT_THERE_NOW in text:
        return Unavailable(f"{url}: {text}")
    if text.startswith("failed to connect"):
        text = f"cannot be reached ({why_unreachable(url.scheme, text)})"
    return KINDS.get(code, Broken)(f"{url}: {advised(text) or code}")


NOT_THERE_NOW = "has no available versions"
"""What a server says of a model that it knows while the model is loaded anew, or the server ends."""

KINDS: dict[str, type[EndpointError]] = {
    "UNAVAILABLE": Unavailable,
    "RESOURCE_EXHAUSTED": Unavailable,
    "503": Unavailable,
    "429": Unavailable,
    "502": Unavailable,
    "504": DeadlineExceeded,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "499": DeadlineExceeded,
    "INVALID_ARGUMENT": Rejected,
    "UNIMPLEMENTED": Rejected,
    "NOT_FOUND": Rejected,
    "OUT_OF_RANGE": Rejected,
    "FAILED_PRECONDITION": Rejected,
    "ALREADY_EXISTS": Rejected,
    "400": Rejected,
    "404": Rejected,
    "413": Rejected,
    "501": Rejected,
    "PERMISSION_DENIED": Denied,
    "UNAUTHENTICATED": Denied,
    "401": Denied,
    "403": Denied,
}
"""Kind of failure by status of gRPC or HTTP; anything else is `Broken`."""


def _name(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _first_line(text: str) -> str:
    """Return a message without what the server puts around it."""
    return re.sub(r"^\[request id: [^\]]*\] ", "", text.strip().splitlines()[0] if text.strip() else "")[:500]
