"""Files of PyTorch Geometric (`.pt`): one object, a list of them, or an InMemoryDataset; read only.

Such files are pickles. PyTorch's restricted unpickler loads tensors and plain containers alone; PyTorch Geometric's own
classes are replaced by inert ones that keep what they are given, so that no code of the file or of that package runs.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from atomsieve.errors import DataError
from atomsieve.structures.formats.base import Format
from atomsieve.structures.item import BadItem, Item, ReadRequest
from atomsieve.structures.labels.names import NAMES

log = logging.getLogger(__name__)

_CLASSES = (
    "torch_geometric.data.data.Data",
    "torch_geometric.data.data.DataEdgeAttr",
    "torch_geometric.data.data.DataTensorAttr",
    "torch_geometric.data.storage.GlobalStorage",
    "torch_geometric.data.storage.BaseStorage",
    "torch_geometric.data.storage.NodeStorage",
    "torch_geometric.data.storage.EdgeStorage",
)
NUMBERS = ("atomic_numbers", "z", "numbers")
GRAPH = ("edge_index", "edge_attr", "edge_weight", "edge_shifts", "cell_offsets", "neighbors", "batch", "ptr", "natoms")
"""Keys of the graph, which follow from the structure."""
OF_STRUCTURES = tuple(name for label, names in NAMES.items() if label != "forces" for name in names)


class _Kept:
    """Stands for a class of PyTorch Geometric: keeps the state that the file gives it."""

    state: Mapping[str, Any] | None = None

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.state = state

    def values(self) -> Mapping[str, Any]:
        """Return the attributes of the object by name.

        Raises
        ------
        ValueError
            if it has none where PyTorch Geometric keeps them.
        """
        store = self.state.get("_store") if isinstance(self.state, Mapping) else None
        state = store.state if isinstance(store, _Kept) else None
        mapping = state.get("_mapping") if isinstance(state, Mapping) else None
        if not isinstance(mapping, Mapping):
            raise ValueError("an object without attributes, or of a version before 2.0")
        return mapping


def read_pyg(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the structures of a file of PyTorch Geometric objects, which is read whole.

    Raises
    ------
    DataError
        if the file holds objects of other classes, or is damaged.
    """
    path = request.path
    content = _load(path)
    try:
        found = list(_objects(content))
    except (ValueError, TypeError, IndexError, KeyError) as error:
        yield BadItem("no objects of PyTorch Geometric in it", str(path), str(error))
        return
    for k, values in enumerate(found):
        where = f"{path}: object {k}"
        try:
            yield _build_item(values, where)
        except (ValueError, TypeError, IndexError, RuntimeError) as error:
            yield BadItem("an object that is no structure", where, str(error))
        if k % 64 == 0:
            request.tick(k / len(found))


@contextmanager
def _inert_classes() -> Iterator[None]:
    """Let PyTorch load the inert classes, and none that some package has allowed before.

    PyTorch Geometric allows its own classes when it is imported; of two classes of one name PyTorch takes either.
    """
    from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

    before = get_safe_globals()
    clear_safe_globals()
    try:
        add_safe_globals([(type(name.rsplit(".", 1)[1], (_Kept,), {}), name) for name in _CLASSES])
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(before)


def _load(path: Path) -> Any:
    import torch

    try:
        with _inert_classes():
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        said = str(error)
        start = said.find("GLOBAL ")
        named = f" ({said[start + 7 :].split()[0]})" if start >= 0 else ""
        raise DataError(
            f"{path} holds objects{named} that only run as code, which is not done here; load it with the program that "
            "made it and write extxyz or an ASE database, or a list of plain Data objects with tensors"
        ) from error
    except Exception as error:  # a damaged archive fails in every way there is
        log.debug("%s", path, exc_info=True)
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{path} is no readable file of PyTorch: {first}") from error


def _objects(content: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the attributes of each object."""
    if isinstance(content, _Kept):
        yield content.values()
    elif isinstance(content, list) and content and all(isinstance(one, _Kept) for one in content):
        yield from (one.values() for one in content)
    elif isinstance(content, tuple) and len(content) >= 2 and isinstance(content[1], Mapping):
        joined = content[0].values() if isinstance(content[0], _Kept) else content[0]
        if not isinstance(joined, Mapping):
            raise ValueError(f"a tuple that begins with {type(joined).__name__}")
        yield from _split(joined, content[1])
    else:
        raise ValueError(f"the content is {type(content).__name__}")


def _split(joined: Mapping[str, Any], slices: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the attributes of each object of an InMemoryDataset, whose arrays are joined one after another."""
    bounds = {
        key: np.asarray(slices[key]).astype(np.int64).tolist()
        for key in joined
        if key not in GRAPH and not isinstance(slices.get(key), Mapping | None)
    }
    if "pos" not in bounds:
        raise ValueError("no positions 'pos'")
    for k in range(len(bounds["pos"]) - 1):
        yield {
            key: joined[key][k] if isinstance(joined[key], list) else joined[key][rows[k] : rows[k + 1]]
            for key, rows in bounds.items()
            if k + 1 < len(rows)
        }


def _build_item(values: Mapping[str, Any], where: str) -> Item:
    import torch

    arrays: dict[str, Any] = {}
    for key, value in values.items():
        if key in GRAPH or value is None:
            continue
        if isinstance(value, torch.Tensor):
            plain = value.detach()
            plain = plain.float() if plain.dtype in (torch.bfloat16, torch.float16) else plain
            arrays[key] = plain.numpy() if plain.layout == torch.strided else None
        else:
            arrays[key] = value
    charges = next((name for name in NUMBERS if isinstance(arrays.get(name), np.ndarray)), None)
    if charges is None or not isinstance(arrays.get("pos"), np.ndarray):
        raise ValueError(f"no pos, or no {', '.join(NUMBERS)}; it has {', '.join(sorted(map(str, values))[:12])}")
    numbers, positions = arrays.pop(charges).reshape(-1), arrays.pop("pos")
    if positions.shape != (len(numbers), 3) or not (numbers == np.rint(numbers)).all():
        raise ValueError(f"pos of shape {positions.shape} and {charges} of {len(numbers)} atoms")
    cell, pbc = arrays.pop("cell", None), arrays.pop("pbc", None)
    if cell is not None and np.any(cell) and pbc is None:
        raise ValueError("a cell, but no pbc that says whether it is periodic")
    info: dict[str, Any] = {}
    of_atoms: dict[str, Any] = {}
    for key, value in arrays.items():
        if isinstance(value, np.ndarray):
            fits = value.ndim > 0 and len(value) == len(numbers)
            if fits and (key not in OF_STRUCTURES or (value.size > 1 and value.size != 9)):
                of_atoms[key] = value
            else:
                info[key] = value.reshape(-1)[0] if value.size == 1 else value
        elif isinstance(value, str | int | float | bool):
            info[key] = value
    return Item(
        numbers.astype(np.int64),
        positions.astype(np.float64),
        np.zeros((3, 3)) if cell is None else np.asarray(cell, np.float64).reshape(3, 3),
        np.zeros(3, bool) if pbc is None else np.broadcast_to(np.asarray(pbc).reshape(-1) != 0, (3,)).copy(),
        where,
        info=info,
        arrays=of_atoms,
    )


ROW = Format(
    name="pyg",
    about="PyTorch Geometric objects (one, a list, an InMemoryDataset), loaded without running code",
    endings=(".pt",),
    read=read_pyg,
)
