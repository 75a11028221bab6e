"""Trajectories of ASE; read only."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from atomsieve.errors import DataError
from atomsieve.structures.item import BadItem, Item, ReadRequest, item_from_atoms

log = logging.getLogger(__name__)


def read_traj(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the frames of an ASE trajectory (.traj)."""
    path, tick = request.path, request.tick
    from ase.io.trajectory import TrajectoryReader

    try:
        trajectory = TrajectoryReader(str(path))
        total = len(trajectory)
    except Exception as error:  # ASE's reader raises whatever it stumbles over
        raise DataError(f"{path} is not a readable ASE trajectory: {error}") from error
    for k in range(total):
        where = f"{path}: frame {k}"
        try:
            item = item_from_atoms(trajectory[k], where)
        except Exception as error:  # as above
            log.debug("%s: %s", where, error, exc_info=True)
            yield BadItem(f"not readable ({type(error).__name__})", where)
            continue
        yield item
        tick((k + 1) / total)
    trajectory.close()
