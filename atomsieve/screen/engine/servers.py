"""A screening that servers compute: which they are, and that they are what is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomsieve.errors import UsageError
from atomsieve.remote.endpoints import format_differences
from atomsieve.remote.transport import EndpointError
from atomsieve.runs.mpi import Communicator
from atomsieve.screen.engine.progress import EventLog
from atomsieve.screen.engine.runner import PredictorLike
from atomsieve.screen.options import ALL_HEADS, ScreenOptions
from atomsieve.screen.results.files import ResultsFolder
from atomsieve.text import format_duration

if TYPE_CHECKING:
    from rich.console import Console

    from atomsieve.remote.credentials import Credentials
    from atomsieve.remote.predictor import RemotePredictor

OF_SERVERS = {"precision": "fp32", "backend": "native", "device": "auto", "threads": 1}
"""Options that belong to whoever starts the servers, and their defaults."""
IN_FLIGHT = 4
"""Requests on their way to one endpoint at once, of all ranks together."""


@dataclass(frozen=True)
class Served:
    """Where an ensemble is served.

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


def connect(
    served: Served, ensemble: str | Path | None, options: ScreenOptions, stack: ExitStack, ranks: int = 1
) -> RemotePredictor:
    """Connect to the servers until `stack` is left; requests of a screening are computed apart from all others.

    ranks : processes that do the same.

    Raises
    ------
    UsageError
        for an option that belongs to the servers, or if they do not serve the ensemble of the given folder.
    """
    from atomsieve.remote.predictor import RemotePredictor

    if options.cascade is not None:
        raise UsageError(f"--cascade {options.cascade} with --endpoint: a server has one precision; omit one")
    for name, usual in OF_SERVERS.items():
        if getattr(options, name) != usual:
            raise refused(name, getattr(options, name))
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


def same_for_all(comm: Communicator, predictor: PredictorLike) -> None:
    """Compare what the ranks are connected to: each may have reached other endpoints of those named.

    Raises
    ------
    UsageError
        on all ranks, if two are not served alike.
    """
    described = comm.all_gather(predictor.describe())

    def compare() -> None:
        for rank, other in enumerate(described):
            if said := format_differences(other, described[0]):
                raise UsageError(
                    f"rank {rank} has reached other servers than rank 0, which do not serve alike: {said}; name only "
                    "endpoints that serve alike"
                )

    comm.run_on_all(compare)


class Watch:
    """Says once which server is lost, and once that it is back; nothing where none computes.

    predictor : that of rank 0. console, log : as of a job.
    """

    def __init__(self, predictor: PredictorLike, console: Console | None, log: EventLog | None) -> None:
        self._predictor: Any = predictor if log is not None and hasattr(predictor, "missing") else None
        self._console, self._log = console, log
        self._known: dict[str, str] = {}

    def __call__(self) -> None:
        """Look for changes."""
        if self._predictor is None:
            return
        missing = self._predictor.missing
        for url in missing.keys() - self._known.keys():
            others = len(self._predictor.endpoints) - len(missing)
            then = f"{others} more at work" if others else f"waiting up to {format_duration(self._predictor.patience)}"
            self._say("server_lost", url, f"warning: {missing[url]}; {then}", error=missing[url])
        for url in self._known.keys() - missing.keys():
            self._say("server_back", url, f"{url} is back")
        self._known = missing

    def _say(self, event: str, url: str, text: str, **facts: str) -> None:
        if self._log is not None:
            self._log(event, endpoint=url, **facts)
        if self._console is not None:
            self._console.print(text, highlight=False, soft_wrap=True, markup=False)


@contextmanager
def kept(folder: ResultsFolder) -> Iterator[None]:
    """Say in the error of a server what becomes of the run."""
    try:
        yield
    except EndpointError as error:
        raise type(error)(
            f"{error}; what was computed is safe in {folder.path}, run the same command again to continue"
        ) from error


def refused(option: str, value: object) -> UsageError:
    """Return the error for an option that makes no sense with an endpoint."""
    return UsageError(
        f"--{option} {value} with --endpoint: the server was started with its own {option}; leave it out, or give "
        "it to `atomsieve serve`"
    )
