"""Labelled structures that an ensemble is compared with: whose labels they are, and whether it was trained on them.

These checks load no model: they come before torch and weights are loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError, UsageError, nearest, unknown
from atomsieve.gfm.manifest import EnsembleManifest, read_head_names
from atomsieve.structures import open_structures
from atomsieve.structures.conversion.copy_record import DatasetCopy
from atomsieve.structures.conversion.read_options import ReadOptions
from atomsieve.structures.conversion.ready import FOLDER, check_input, ensure_dataset
from atomsieve.structures.interface import StructureReader

if TYPE_CHECKING:
    from rich.console import Console

AUTO = "auto"
"""Name of the mixture of heads, as in `atomsieve.uncertainty.head_mixture`."""
TRAINED_ON = ("auto", "train", "val")
"""Uses of a data file by which members were trained, or chosen."""


@contextmanager
def open_labelled(
    data: str | Path,
    heads: list[str],
    head: str | None = None,
    *,
    reading: ReadOptions | None = None,
    beside: str | Path,
    action: str = "compared with labels of one theory",
    console: Console | None = None,
) -> Iterator[tuple[StructureReader, DatasetCopy]]:
    """Open labelled structures of any readable file, and check that their labels belong to heads.

    heads : of the ensemble. head : the one of all structures; None takes the one that each source is called like.
    reading : how a file that is no dataset is read. beside : path beside which such a file is converted.
    action : what is to be done, as a participle, in the message on the mixture of heads.

    Raises
    ------
    DataError
        if there are no structures, or none of them has labels.
    UsageError
        for an unknown head; for labels of which it is not clear which head they belong to.
    """
    if head is not None and head not in (*heads, AUTO):
        raise unknown("head", head, heads)
    refuse_mixture(head, heads, action=action)
    check_input(Path(data))
    folder = Path(beside).absolute().parent / FOLDER
    copy = ensure_dataset(data, folder, reading, need_sources=False, console=console)
    if console is not None:
        for line in copy.unreadable.format_lines():
            console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)
    with open_structures(copy.path) as reader:
        require_labels(reader, copy)
        source_heads(reader, heads, head, str(data))
        if console is not None and (others := list_left_out(reader, heads, head)):
            words = (
                f"left out, as no head of the ensemble is called so: {', '.join(others)}; --head takes all as one head"
            )
            console.print(words, style="yellow", highlight=False, markup=False, soft_wrap=True)
        yield reader, copy


def check_labelled(
    gfm: str | Path,
    data: str | Path,
    head: str | None,
    *,
    reading: ReadOptions | None = None,
    beside: str | Path,
    console: Console | None = None,
) -> None:
    """Make the checks of `open_labelled` for an ensemble folder, converting the file if need be."""
    with open_labelled(data, read_head_names(gfm), head, reading=reading, beside=beside, console=console):
        pass


def require_labels(reader: StructureReader, copy: DatasetCopy) -> None:
    """Refuse structures without any label.

    Raises
    ------
    DataError
        saying how labels are named.
    """
    if not {"energy", "forces", "stress"} & set(reader.fields):
        notes = f" ({'; '.join(copy.notes)})" if copy.notes else ""
        remedy = (
            "name the keys that hold them: --energy-key KEY, --forces-key KEY"
            if copy.is_copy
            else "convert it from the file that has them"
        )
        raise DataError(f"{copy.given} has no labels (energies, forces or stress){notes}; {remedy}")


def match_heads(
    reader: StructureReader, heads: list[str], head: str | None, shown: str | None = None
) -> dict[int, str]:
    """Return the head of each source of a file: that of its name, or `head` for all of them.

    Sources without a head are left out (`list_left_out`) where others have one. shown : name of the file in messages.

    Raises
    ------
    UsageError
        naming the heads, where no source is any of them and no head was named.
    """
    if head is not None:
        return dict.fromkeys(range(-1, len(reader.sources)), head)
    names = {k: source.name for k, source in enumerate(reader.sources) if source.name in heads}
    if reader.sources and not names:
        first = reader.sources[0].name
        raise UsageError(
            f"{shown or reader.path}: source {first!r} is no head of the ensemble{nearest(first, heads)}; allowed: "
            f"{', '.join(heads)}. Name the one that its labels belong to with --head"
        )
    if not names and len(heads) > 1:
        raise UsageError(
            f"{shown or reader.path} states no source of its labels; say with --head which head they belong to: "
            f"{', '.join(heads)}"
        )
    return names or {-1: heads[0]}


def list_left_out(reader: StructureReader, heads: list[str], head: str | None) -> list[str]:
    """Return the sources of a file that are no head, whose structures are left out where no head is named."""
    return [] if head is not None else [source.name for source in reader.sources if source.name not in heads]


def refuse_mixture(head: str | None, heads: list[str], *, action: str) -> None:
    """Refuse the mixture of heads where one head is needed; `action` is the participle in the message.

    Raises
    ------
    UsageError
        for the mixture, naming the heads.
    """
    if head == AUTO and AUTO not in heads:
        raise UsageError(
            f"head {AUTO} is a mixture of heads by composition, which cannot be {action}; name one with --head: "
            f"{', '.join(heads)}"
        )


def source_heads(
    reader: StructureReader, heads: list[str], head: str | None, shown: str | None = None
) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Return the source [S] of each structure and the head of each source (`match_heads`).

    A structure without a source belongs to the only source of the file, or to none (-1), which needs a named head.
    Sources without a head are numbered, and are none of the keys.
    """
    names = match_heads(reader, heads, head, shown)
    found = reader.read_arrays(0, len(reader), ["head"]).get("head")
    source = np.full(len(reader), -1, np.int64) if found is None or not reader.sources else found.astype(np.int64)
    source = np.where(source < 0, 0 if len(reader.sources) == 1 else -1, source)
    orphans = int((source < 0).sum()) if -1 not in names else 0
    if orphans:
        raise UsageError(
            f"{shown or reader.path}: {orphans} structures are of no source; say with --head which head is theirs"
        )
    return source, names


def was_trained_on(manifest: EnsembleManifest, reader: StructureReader, content: str = "") -> bool:
    """Return True if the record of the training in the manifest lists the file for training or validation.

    content : digest of the file that was converted into what `reader` reads; empty where nothing was.
    """
    config: dict[str, Any] = manifest.training.get("config", {})
    items = config.get("data", [])
    digests = manifest.training.get("data_sha256", [None] * len(items))
    contents = manifest.training.get("data_contents", [""] * len(items))
    identity, path = reader.identity(), str(reader.path.resolve())
    return any(
        item.get("use", "auto") in TRAINED_ON
        and ((digest == identity if digest else item.get("path") == path) or bool(content and known == content))
        for item, digest, known in zip(items, digests, contents, strict=False)
    )
