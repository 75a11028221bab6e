"""What the plots of an evaluation have in common: colours, PNG, legends, thinning of points."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.evaluation.error_sets import Errors, energy_errors, force_errors
from atomsieve.evaluation.residuals import HeadRows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RAW, FITTED, OUTSIDE = "#b0b0b0", "#1f5fa8", "#d1495b"
MOST_POINTS = 4000
PROPERTIES: dict[str, tuple[Callable[[HeadRows], Errors], str]] = {
    "energy": (energy_errors, "meV/atom"),
    "force": (force_errors, "meV/Å"),
}


def pyplot() -> Any:
    """Return matplotlib.pyplot, which draws into files."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def png(figure: Figure) -> bytes:
    """Return a figure as PNG, and close it."""
    file = io.BytesIO()
    figure.savefig(file, dpi=110, format="png", metadata={"Software": None})
    pyplot().close(figure)
    return file.getvalue()


def add_shared_legend(figure: Figure, panels: Sequence[Axes], side: str, markerscale: float = 1) -> None:
    """Put the legends of some panels outside of all panels, at the `upper` or `lower` side of the figure."""
    both = [axes.get_legend_handles_labels() for axes in panels]
    handles: list[Any] = [handle for pair in both for handle in pair[0]]
    labels = [label for pair in both for label in pair[1]]
    if handles:
        legend = figure.legend(
            handles,
            labels,
            fontsize=9,
            markerscale=markerscale,
            loc="outside upper center" if side == "upper" else "outside lower center",
            ncols=len(handles),
            frameon=False,
        )
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1)


def thin_indices(n: int) -> NDArray[np.int64]:
    """Return at most MOST_POINTS of n indices, evenly spaced: enough points for a panel."""
    return np.unique(np.linspace(0, n - 1, min(n, MOST_POINTS)).astype(np.int64)) if n else np.zeros(0, np.int64)
