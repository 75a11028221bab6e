"""Neighbour lists between calls of a predictor: kept where it computes in this process, nobody's business elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atomsieve.errors import UsageError
from atomsieve.predict import AnyPredictor

if TYPE_CHECKING:
    from atomsieve.graphs import SkinList


class NoList:
    """Stands for the lists of a predictor whose server makes them anew in every call. skin : 0 Angstrom."""

    skin = 0.0

    def clear(self) -> None:
        """Do nothing."""


def skin_list(predictor: AnyPredictor, skin: float | None) -> SkinList | NoList:
    """Return what builds the graphs of a predictor; skin : Angstrom, None for what is faster.

    Raises
    ------
    UsageError
        for a skin that cannot be, or one with a predictor that computes elsewhere.
    """
    if hasattr(predictor, "endpoints"):
        if skin:
            raise UsageError(f"skin {skin} cannot be had from a server, which keeps no neighbour lists; leave it out")
        return NoList()
    from atomsieve.graphs import SkinList

    return SkinList(skin, predictor.device)
