"""Check of an endpoint by an inference on structures with known results; its own health report is not used."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atomsieve.errors import AtomSieveError, UsageError, unknown
from atomsieve.remote.credentials import Credentials
from atomsieve.remote.endpoints import explain_mismatch, parse_description
from atomsieve.remote.test_vector import compare_test_vector, round_error
from atomsieve.remote.transport import EndpointError, Transport
from atomsieve.remote.url import Url, parse_url
from atomsieve.remote.workers import EMPTY_REQUEST


def check_endpoint(
    url: str,
    *,
    model: str = "gfm",
    credentials: Credentials | None = None,
    ensemble: Path | None = None,
    heads: Sequence[str] | None = None,
    seconds: float = 60,
) -> dict[str, Any]:
    """Send the test vector of every head to an endpoint, compare the answers, and return a summary.

    The server's own test vector is used, or that of the folder `ensemble`, which must be the served one.
    heads : to test, None for all. seconds : for each of the answers.

    Returns
    -------
    dict with url, server (name and version), model, atomsieve, ensemble_id, heads, precision, backend, device,
    threads, error_of_allowed (the largest error relative to the allowed one; three digits) and milliseconds (of
    one head's test vector, on average).

    Raises
    ------
    EndpointError
        if there is no answer; AtomSieveError if it is wrong, or another ensemble is served.
    """
    where = parse_url(url)
    with Transport(where, credentials, connections=1, seconds=seconds) as transport:
        ask = transport.infer
        found = ask(model, EMPTY_REQUEST, ["description", "test_vector"], seconds=seconds)
        description = parse_description(found["description"], where)
        if (refused := explain_mismatch(where, description, {}, None)) is not None:
            raise AtomSieveError(refused)
        if ensemble is None:
            vector = _parse_vector(found["test_vector"], where)
        else:
            vector = _local_vector(ensemble, description, where.target)
        if heads is not None and not heads:
            raise UsageError(f"no head to test; leave heads out to test all of {', '.join(vector['heads'])}")
        for head in heads or ():
            if head not in vector["heads"]:
                raise unknown("head", head, vector["heads"])
        spent: list[float] = []

        def answer(arrays: dict[str, Any], head: str, names: list[str]) -> Mapping[str, Any]:
            began = time.perf_counter()
            parameters = {"head": head, "ensemble_id": description["ensemble_id"]}
            answered = ask(model, arrays, names, parameters, seconds=seconds)
            spent.append(time.perf_counter() - began)
            return answered

        try:
            worst = compare_test_vector(vector, answer, description["precision"], description["gives"], heads)
        except EndpointError:
            raise
        except AtomSieveError as error:
            raise AtomSieveError(f"{where}: {error}; do not use this server") from error
        server = _server_version(transport)
    facts = ("atomsieve", "ensemble_id", "precision", "backend", "device", "threads")
    return {
        "url": str(where),
        "server": server,
        "model": model,
        **{name: description.get(name) for name in facts},
        "heads": list(heads or vector["heads"]),
        "error_of_allowed": round_error(worst),
        "milliseconds": round(1000 * sum(spent) / len(spent), 3),
    }


def _parse_vector(sent: Any, where: Url) -> Mapping[str, Any]:
    """Return the test vector that an endpoint sent as bytes [B]."""
    try:
        found = json.loads(bytes(sent))
    except ValueError as error:
        raise AtomSieveError(f"{where}: its test vector is no JSON ({error}); do not use this server") from error
    if not isinstance(found, dict) or not isinstance(found.get("heads"), dict) or not found["heads"]:
        raise AtomSieveError(f"{where}: its test vector names no heads; do not use this server")
    return found


def _server_version(transport: Transport) -> str:
    """Return name and version of the server, "unknown" if a proxy hides them."""
    try:
        found = transport.metadata()
    except EndpointError:
        return "unknown"
    return f"{found.get('name', 'unknown')} {found.get('version', '')}".strip()


def _local_vector(folder: Path, description: Mapping[str, Any], target: str) -> dict[str, Any]:
    """Return the test vector of an ensemble folder, which must be the served ensemble."""
    from atomsieve.gfm import ensemble_id
    from atomsieve.remote.test_vector import read_test_vector

    own, served = ensemble_id(folder), description["ensemble_id"]
    if own != served:
        raise AtomSieveError(f"{target} serves ensemble {served[:12]}, {folder} is {own[:12]}; name the folder served")
    return read_test_vector(folder)
