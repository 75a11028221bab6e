"""RemoteCalculator: an ensemble that servers hold as an ASE calculator."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

from ase import Atoms
from ase.calculators.calculator import CalculationFailed, CalculatorSetupError, InputError

from atomsieve.calculators.gfm import GFMCalculator
from atomsieve.errors import AtomSieveError, DataError
from atomsieve.predict import Prediction

if TYPE_CHECKING:
    from atomsieve.serve.remote import RemotePredictor
    from atomsieve.serve.transport import Credentials

SETTINGS = {"endpoint": None, "model": "gfm", "head": None}
"""Parameters and their defaults."""


class RemoteCalculator(GFMCalculator):
    """An ensemble behind an endpoint as an ASE calculator, with the properties of `GFMCalculator`.

    The server decides precision, device and backend. It computes what clients ask for at the same time together, which
    changes last bits; `alone=True` excludes that. A server that is restarted is waited for; one that serves another
    ensemble then is refused.

    Parameters
    ----------
    endpoint : `grpc://host:8001`, several by commas; grpcs, http and https too. Or a connected `RemotePredictor`.
    model : name of the ensemble there.
    head : the level of theory to use; None takes the server's default.
    credentials : token and TLS files, `atomsieve.serve.transport.Credentials`. A pickle of the calculator holds them.
    deadline : seconds for one answer. patience : seconds that a calculation waits for a server that is gone.

    Raises
    ------
    CalculatorSetupError
        if no server answers, or a name is unknown. While atoms are computed: CalculationFailed if the server does not
        answer within the patience, and what `GFMCalculator` raises.
    """

    default_parameters = SETTINGS
    settings: ClassVar[dict[str, Any]] = SETTINGS

    def __init__(
        self,
        endpoint: str | RemotePredictor | None = None,
        model: str = "gfm",
        head: str | None = None,
        *,
        credentials: Credentials | None = None,
        deadline: float = 60.0,
        patience: float = 60.0,
        alone: bool = False,
        **kwargs: Any,
    ) -> None:
        from atomsieve.serve.remote import RemotePredictor

        if endpoint is None:
            raise CalculatorSetupError("no endpoint given; name it: RemoteCalculator('grpc://127.0.0.1:8001')")
        try:
            if not isinstance(endpoint, RemotePredictor):
                endpoint = RemotePredictor.connect(
                    endpoint, model, head, credentials=credentials, deadline=deadline, patience=patience, alone=alone
                )
            self._take(endpoint, head, None)
        except (AtomSieveError, OSError) as error:  # OSError of a file for TLS
            raise CalculatorSetupError(str(error)) from error
        self._given = endpoint
        shown = {"endpoint": ",".join(endpoint.endpoints), "model": endpoint.model, "head": self._head}
        self._begin(shown, kwargs)

    def _get_name(self) -> str:
        return "remote gfm"

    def close(self) -> None:
        """Give the connections up."""
        self._given.close()

    def _why_not(self, name: str) -> str:
        return super()._why_not(name).replace("use backend='native'", "serve it with --backend native")

    def _predict(self, atoms: Atoms, want: frozenset[str]) -> Prediction:
        try:
            return super()._predict(atoms, want)
        except AtomSieveError as error:  # of the server; what is wrong with the atoms is ASE's already
            raise (InputError if isinstance(error, DataError) else CalculationFailed)(str(error)) from error

    def __deepcopy__(self, memo: dict[int, Any]) -> RemoteCalculator:
        """Return a calculator with a cache of its own that shares the connections."""
        new = RemoteCalculator(self._given, head=self._head)
        new.parameters = copy.deepcopy(self.parameters, memo)
        return new

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the way to the servers; another ensemble there is refused."""
        return _reopen, (self._given.__reduce__()[1], self._head)


def _reopen(way: tuple[Any, ...], head: str) -> RemoteCalculator:
    from atomsieve.serve.remote import reconnect

    try:
        return RemoteCalculator(reconnect(*way), head=head)
    except AtomSieveError as error:
        raise CalculatorSetupError(str(error)) from error
