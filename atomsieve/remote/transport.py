"""Connection to one endpoint over gRPC or HTTP: arrays out, arrays in, and every failure as one of a few kinds."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import AtomSieveError, require
from atomsieve.remote.credentials import Credentials
from atomsieve.remote.diagnostics import add_advice, explain_unreachable
from atomsieve.remote.url import Url
from atomsieve.remote.wire import INPUTS

PURPOSE = "asking a server"

RESTRICTED = re.compile(r"This (protocol|API) is restricted")
"""Error text of a server where a secret is missing or wrong."""


class EndpointError(AtomSieveError):
    """A request got no answer."""


class Unavailable(EndpointError):  # noqa: N818 - what the protocol calls it
    """No server answers, or it is full or starting: the same request may succeed later or elsewhere."""


class Broken(EndpointError):  # noqa: N818
    """The server failed inside: its model may have died. The same request may succeed later or elsewhere."""


class DeadlineExceeded(EndpointError):  # noqa: N818
    """There was no answer in time."""


class Denied(EndpointError):  # noqa: N818
    """The token or certificate is missing or wrong."""


class Rejected(EndpointError):  # noqa: N818
    """The request is wrong for any server; the message gives the reason."""


class Transport:
    """A connection to one endpoint; threads may share it over gRPC.

    Parameters
    ----------
    url, credentials : of the endpoint. connections : requests that may run at once over HTTP.
    seconds : limit for connecting over HTTP; every request has its own deadline.

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
            of the kind that decides whether a retry makes sense.
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
        """Return name, version and extensions of the server."""
        more = {"as_json": True} if self.grpc else {}
        found: dict[str, Any] = self._call(self._client.get_server_metadata, seconds=seconds, **more)
        return found

    def models(self, seconds: float = 10.0) -> list[str]:
        """Return the names of the models in the repository; needs the admin's secret."""
        more = {"as_json": True} if self.grpc else {}
        found = self._call(self._client.get_model_repository_index, seconds=seconds, **more)
        return sorted(m["name"] for m in (found.get("models", []) if self.grpc else found))

    def is_ready(self, model: str, seconds: float = 10.0) -> bool:
        """Return whether the server reports a model as ready, which it also does if the model's process has died."""
        return bool(self._call(self._client.is_model_ready, model, seconds=seconds))

    def close(self) -> None:
        """Close the connection."""
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
                raise classify_error(self.url, error) from error
            except ValueError as error:
                if "closed channel" not in str(error):
                    raise
                raise Unavailable(f"{self.url}: the connection was closed") from error
        try:
            return _within(seconds, lambda: function(*args, headers=self._headers, **more))
        except Exception as error:  # a malformed answer may raise anything in the parsers
            raise classify_error(self.url, error) from error


def _within(seconds: float, work: Callable[[], Any]) -> Any:
    """Run `work`, which waits in gevent sockets alone, and return its result.

    Socket timeouts apply to each received piece, so a server that sends slowly could block for ever without this limit.

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

    Each client has its own connection, with short pauses between attempts to connect: gRPC's default pauses grow to
    minutes, in which a server that is back would still count as gone.
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
    """Return the arguments of `infer` for a client of `module` (of tritonclient); arrays are tensors [1,...]."""
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
        if one is missing or malformed.
    """
    try:
        arrays = {name: found.as_numpy(name) for name in outputs}
    except Exception as error:  # of the library's parsers, which do not check the answer
        raise classify_error(url, error) from error
    for name, values in arrays.items():
        if values is None or values.ndim == 0 or len(values) != 1:
            raise Broken(f"{url}: the answer lacks {name}")
    return {name: values[0] for name, values in arrays.items()}


def classify_error(url: Url, error: BaseException) -> EndpointError:
    """Return a client error as one of the kinds that decide whether a retry makes sense."""
    status = getattr(error, "status", lambda: None)()
    if status is None:  # there is no answer of the server, or a malformed one
        why = _first_line(str(error)) or type(error).__name__
        if isinstance(error, TimeoutError):
            return DeadlineExceeded(f"{url}: no answer in time")
        if isinstance(error, HTTPException):
            return Unavailable(f"{url}: the connection was cut, or what answers there speaks no HTTP ({why})")
        if isinstance(error, OSError):
            why = explain_unreachable(url.scheme, why) if isinstance(error, ssl.SSLError) else why
            return Unavailable(f"{url}: cannot be reached ({why})")
        return Broken(f"{url}: its answer cannot be read ({type(error).__name__}: {why})")
    code = str(status).removeprefix("StatusCode.")
    text = _first_line(getattr(error, "message", lambda: "")() or "")
    if RESTRICTED.match(text):  # which gRPC calls UNAVAILABLE
        return Denied(f"{url}: the token is missing or wrong ({text[:1].lower()}{text[1:]})")
    if NOT_THERE_NOW in text:
        return Unavailable(f"{url}: {text}")
    if text.startswith("failed to connect"):
        text = f"cannot be reached ({explain_unreachable(url.scheme, text)})"
    return KINDS.get(code, Broken)(f"{url}: {add_advice(text) or code}")


NOT_THERE_NOW = "has no available versions"
"""Error text for a known model while it is being reloaded, or the server ends."""

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
    """Return the first line of a message without the server's request id."""
    return re.sub(r"^\[request id: [^\]]*\] ", "", text.strip().splitlines()[0] if text.strip() else "")[:500]
