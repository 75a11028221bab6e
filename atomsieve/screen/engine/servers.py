"""A screening that servers compute: connect to them, check that they serve alike, watch for lost ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomsieve.errors import UsageError
from atomsieve.predict.interface import AnyPredictor
from atomsieve.remote.endpoints import format_differences
from atomsieve.remote.transport import EndpointError
from atomsieve.runs.mpi import Communicator
from atomsieve.screen.engine.reporter import Reporter
from atomsieve.screen.options import ALL_HEADS, ScreenOptions
from atomsieve.screen.results.files import ResultsFolder
from atomsieve.text import format_duration

if TYPE_CHECKING:
    from atomsieve.remote.credentials import Credentials
    from atomsieve.remote.predictor import RemotePredictor

OF_SERVERS = {"precision": "fp32", "backend": "native", "device": "auto", "threads": 1}
"""Options that belong to whoever starts the servers, and their defaults."""
IN_FLIGHT = 4
"""Requests on their way to one endpoint at once, of all ranks together."""


@dataclass(frozen=True)
class RemoteOptions:
    """Which servers compute instead of this process, and how long requests to them may take.

    Attributes
    ----------
    endpoints : `grpc://h1:8001,h2:8001`. model : its name there. credentials : token and TLS files.
    deadline : seconds for one answer. patience : seconds that a request waits for a server that is gone.
    """

    endpoints: str
    model: str = "gfm"
    credentials: Credentials | None = None
    deadline: float = 60.0
    patience: float = 300.0


def connect_servers(
    served: RemoteOptions, ensemble: str | Path | None, options: ScreenOptions, stack: ExitStack, ranks: int = 1
) -> RemotePredictor:
    """Connect to the servers until `stack` is left; they compute the requests of a screening separately from others.

    ranks : processes that do the same.

    Raises
    ------
    UsageError
        for an option that belongs to the servers, or if they do not serve the ensemble of the given folder.
    """
    from atomsieve.remote.predictor import RemotePredictor

    if options.cascade is not None:
        raise UsageError(f"--cascade {options.cascade} with --endpoint: a server has one precision; omit one")
    asked = {
        "precision": options.precision,
        "backend": options.backend,
        "device": options.device,
        "threads": options.threads,
    }
    for name, usual in OF_SERVERS.items():
        if asked[name] != usual:
            raise server_option_error(name, asked[name])
    head = None if options.head in (None, ALL_HEADS) else options.head
    predictor = stack.enter_context(
        RemotePredictor.connect(
            served.endpoints,
            served.model,
            head,
            credentials=served.credentials,
            deadline=served.deadline,
            patience=served.patience,
            in_flight=max(1, IN_FLIGHT // ranks),
            alone=True,
        )
    )
    if ensemble is not None:
        from atomsieve.gfm import ensemble_id

        own = ensemble_id(ensemble)
        if own != predictor.ensemble_id:
            raise UsageError(
                f"{served.endpoints} serves ensemble {predictor.ensemble_id[:12]}, but {ensemble} is {own[:12]}; leave "
                "--ensemble out to screen with what is served"
            )
    return predictor


def check_served_alike(comm: Communicator, predictor: AnyPredictor) -> None:
    """Compare the servers of all ranks: each rank may have reached other endpoints of those named.

    Raises
    ------
    UsageError
        on all ranks, if two are not served alike.
    """
    comm.run_on_all(_compare_with_first, comm.all_gather(predictor.describe()))


def _compare_with_first(described: list[dict[str, Any]]) -> None:
    for rank, other in enumerate(described):
        if text := format_differences(other, described[0]):
            raise UsageError(
                f"rank {rank} has reached other servers than rank 0, which do not serve alike: {text}; name only "
                "endpoints that serve alike"
            )


class ServerWatch:
    """Reports once that a server is lost, and once that it is back; nothing where this process computes.

    predictor : that of this rank. reporter : rank 0 reports, the others look at nothing.
    """

    def __init__(self, predictor: AnyPredictor, reporter: Reporter) -> None:
        self._predictor, self._reporter = predictor, reporter
        self._capabilities = predictor.capabilities
        self._known: dict[str, str] = {}

    def __call__(self) -> None:
        """Look for changes."""
        endpoints = self._capabilities.endpoints
        if self._reporter.log is None or not endpoints:
            return
        lost = self._predictor.lost_endpoints()
        for url in lost.keys() - self._known.keys():
            others = len(endpoints) - len(lost)
            patience = format_duration(self._capabilities.patience)
            then = f"{others} more at work" if others else f"waiting up to {patience}"
            self._reporter.record("server_lost", endpoint=url, error=lost[url])
            self._reporter.show(f"warning: {lost[url]}; {then}")
        for url in self._known.keys() - lost.keys():
            self._reporter.record("server_back", endpoint=url)
            self._reporter.show(f"{url} is back")
        self._known = lost


@contextmanager
def add_resume_hint(folder: ResultsFolder) -> Iterator[None]:
    """Add to the error of a server that the results are safe, and how to continue."""
    try:
        yield
    except EndpointError as error:
        raise type(error)(
            f"{error}; what was computed is safe in {folder.path}, run the same command again to continue"
        ) from error


def server_option_error(option: str, value: object) -> UsageError:
    """Return the error for an option that makes no sense with an endpoint."""
    return UsageError(
        f"--{option} {value} with --endpoint: the server was started with its own {option}; leave it out, or give "
        "it to `atomsieve serve`"
    )
