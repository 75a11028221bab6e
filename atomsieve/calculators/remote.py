"""RemoteCalculator: an ensemble that servers hold as an ASE calculator."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

from ase.calculators.calculator import CalculatorSetupError

from atomsieve.calculators.gfm import GFMCalculator
from atomsieve.errors import AtomSieveError

if TYPE_CHECKING:
    from atomsieve.remote.credentials import Credentials
    from atomsieve.remote.predictor import RemotePredictor

SETTINGS = {"endpoint": None, "model": "gfm", "head": None}
"""Parameters and their defaults."""
PATIENCE = 60.0
"""Seconds that a calculation waits for a server that does not answer."""


class RemoteCalculator(GFMCalculator):
    """An ensemble behind an endpoint as an ASE calculator, with the properties of `GFMCalculator`.

    The server decides precision, device and backend. It computes simultaneous requests of several clients together,
    which changes last bits; `alone=True` excludes that. The calculator waits for a server that restarts, and refuses
    one that then serves another ensemble.

    Parameters
    ----------
    endpoint : `grpc://host:8001`, several by commas; grpcs, http and https too. Or a connected `RemotePredictor`, which
        brings its own model, credentials and times.
    model : name of the ensemble there; None means gfm.
    head : the level of theory to use; None takes the server's default.
    credentials : token and TLS files, `atomsieve.remote.credentials.Credentials`; a pickle of the calculator has them.
    deadline : seconds for one answer (60). patience : seconds to wait for a server that does not answer (60).

    Raises
    ------
    CalculatorSetupError
        if no server answers, or a name is unknown. A calculation raises CalculationFailed if the server does not
        answer within the patience, and the errors of `GFMCalculator`.
    """

    default_parameters = SETTINGS
    settings: ClassVar[dict[str, Any]] = SETTINGS

    def __init__(
        self,
        endpoint: str | RemotePredictor | None = None,
        model: str | None = None,
        head: str | None = None,
        *,
        credentials: Credentials | None = None,
        deadline: float | None = None,
        patience: float | None = None,
        alone: bool | None = None,
        **kwargs: Any,
    ) -> None:
        from atomsieve.remote.predictor import RemotePredictor

        if endpoint is None:
            raise CalculatorSetupError("no endpoint given; name it: RemoteCalculator('grpc://127.0.0.1:8001')")
        asked = {
            "model": model,
            "credentials": credentials,
            "deadline": deadline,
            "patience": patience,
            "alone": alone,
        }
        own: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        self._opened = not isinstance(endpoint, RemotePredictor)
        try:
            if not isinstance(endpoint, RemotePredictor):
                endpoint = RemotePredictor.connect(endpoint, head=head, **{"patience": PATIENCE, **own})
            elif own:
                raise CalculatorSetupError(
                    f"{', '.join(own)} with a predictor that is connected already; give it to RemotePredictor.connect"
                )
            self._use(endpoint, head, None)
        except AtomSieveError as error:
            raise CalculatorSetupError(str(error)) from error
        self._given = endpoint
        shown = {"endpoint": ",".join(endpoint.capabilities.endpoints), "model": endpoint.model, "head": self._head}
        self._begin(shown, kwargs)

    def _get_name(self) -> str:
        return "remote gfm"

    def close(self) -> None:
        """Close the connections that this calculator opened, not those of a predictor given to it."""
        if self._opened:
            self._given.close()

    def _why_not(self, name: str) -> str:
        return super()._why_not(name).replace("use backend='native'", "serve it with --backend native")

    def __deepcopy__(self, memo: dict[int, Any]) -> RemoteCalculator:
        """Return a calculator with an own cache that shares the connections."""
        new = RemoteCalculator(self._given, head=self._head)
        new.parameters = copy.deepcopy(self.parameters, memo)
        return new

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the addresses of the servers; a copy refuses servers that then hold another ensemble."""
        return _reopen, (self._given.__reduce__()[1], self._head)


def _reopen(way: tuple[Any, ...], head: str) -> RemoteCalculator:
    from atomsieve.remote.predictor import reconnect

    try:
        calc = RemoteCalculator(reconnect(*way), head=head)
    except AtomSieveError as error:
        raise CalculatorSetupError(str(error)) from error
    calc._opened = True
    return calc
