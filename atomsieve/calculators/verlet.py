"""Neighbour lists that are kept between the calls of a predictor, where it computes in this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from atomsieve.errors import UsageError
from atomsieve.predict import AnyPredictor

if TYPE_CHECKING:
    from atomsieve.graphs import SkinList


@dataclass(frozen=True)
class KeptLists:
    """The neighbour lists of one predictor.

    build : makes the graphs of its calls; None where a server builds them in every call.
    """

    build: SkinList | None

    @property
    def skin(self) -> float:
        """Width of the skin, Angstrom; 0 where no lists are kept."""
        return 0.0 if self.build is None else self.build.skin

    def clear(self) -> None:
        """Forget all lists."""
        if self.build is not None:
            self.build.clear()


def keep_lists(predictor: AnyPredictor, skin: float | None) -> KeptLists:
    """Return the lists of a predictor, none made yet; skin : Angstrom, None for the faster choice.

    Raises
    ------
    UsageError
        for a skin that cannot be, or one with a predictor that takes no lists.
    """
    if not predictor.capabilities.graphs:
        if skin:
            raise UsageError(f"skin {skin} cannot be had from a server, which keeps no neighbour lists; leave it out")
        return KeptLists(None)
    from atomsieve.graphs import SkinList

    return KeptLists(SkinList(skin, predictor.device))
