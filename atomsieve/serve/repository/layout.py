"""Files and folders of a model repository: names, versions, configurations, and how a new version gets into place."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from atomsieve.errors import AtomSieveError, DataError, UsageError, require
from atomsieve.gfm.manifest import MANIFEST, find_folder
from atomsieve.serve.model.settings import GFM, Settings

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
CONFIG = "config.pbtxt"
WRITER = "atomsieve"
"""Configuration parameter that marks a model as written by AtomSieve; its value is the AtomSieve version."""


@dataclass(frozen=True)
class RepositoryModel:
    """One model of a repository: its name, the folder of its ensemble, and how it is served."""

    name: str
    gfm: Path
    settings: Settings


def parse_named_folders(folders: Sequence[str]) -> list[tuple[str, Path]]:
    """Return name and path of folders given as `PATH` or `NAME=PATH`; a single path is named `gfm`.

    The folder of a training stands for the only ensemble in it.

    Raises
    ------
    UsageError
        for a name that is not made of letters, digits, - and _, or is given twice.
    """
    found: list[tuple[str, Path]] = []
    for given_as in folders:
        before, equals, after = given_as.partition("=")
        path = Path(after if equals else before)
        name = before if equals else GFM if len(folders) == 1 else Path(os.path.abspath(path)).name
        if not NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} cannot name a model: allowed are a letter, then letters, digits, - and _ (64 at most); "
                f"give it as NAME={path}"
            )
        if name in [n for n, _ in found]:
            raise UsageError(f"two models are named {name!r}; give each a name of its own: NAME={path}")
        found.append((name, find_folder(path)))
    return found


def check_target(repository: Path, name: str, version: int, *, overwrite: bool) -> None:
    """Refuse a target folder that holds something else, before anything is written.

    Raises
    ------
    UsageError
        for a version below 1; AtomSieveError if something else is there.
    """
    if version < 1:
        raise UsageError(f"a version must be 1 or above, got {version}")
    if repository.exists() and not repository.is_dir():
        raise AtomSieveError(f"{repository} is a file; name a folder for the model repository")
    if (repository / MANIFEST).is_file():
        raise AtomSieveError(f"{repository} is an ensemble folder; name another folder for the model repository")
    model = repository / name
    if not model.exists():
        return
    if not model.is_dir() or (any(model.iterdir()) and WRITER not in _parameters(model)):
        raise AtomSieveError(
            f"{model} is there already and was not written by this program; name another --out, or another model with "
            "NAME=PATH"
        )
    if (model / str(version)).exists() and not overwrite:
        raise AtomSieveError(
            f"{model / str(version)} is there already; choose another --version, or replace it with --overwrite"
        )


def _parameters(model: Path) -> Mapping[str, Any]:
    """Return the parameters of a model's configuration; empty if it cannot be read."""
    try:
        parameters: Mapping[str, Any] = read_config(model / CONFIG).parameters
    except (OSError, ValueError, DataError):
        return {}
    return parameters


@contextmanager
def scratch_folder(repository: Path) -> Iterator[Path]:
    """Make a folder inside the repository that a server ignores, and remove it in the end."""
    new = not repository.exists()
    repository.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory(dir=repository, prefix=".writing-") as name:
            yield Path(name)
    finally:
        if new and not any(repository.iterdir()):
            repository.rmdir()


def read_config(path: Path) -> Any:
    """Read a configuration by Triton's own schema.

    Raises
    ------
    DataError
        if it is none.
    """
    schema = require("tritonclient.grpc.model_config_pb2", "serve", "reading a model repository")
    return parse_message(path.read_text(), schema.ModelConfig(), str(path))


def parse_message(text: str, into: Any, name: str) -> Any:
    """Parse the text form of a message.

    Raises
    ------
    DataError
        if it does not follow the schema.
    """
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, into)
    except text_format.ParseError as error:
        raise DataError(f"{name} is no model configuration ({error})") from error


def list_other_versions(model: Path, version: int) -> list[int]:
    """Return the versions of a model other than `version`."""
    if not model.is_dir():
        return []
    found = [int(p.name) for p in model.iterdir() if p.name.isdigit() and p.is_dir()]
    return sorted(n for n in found if n != version)


def merge_config_versions(model: Path, text: str, others: Sequence[int]) -> str:
    """Return the new configuration `text`, widened so that it also serves the versions `others` of a model.

    All versions of a model share one configuration. A dimension that differs between them becomes -1.

    Raises
    ------
    AtomSieveError
        if inputs or outputs differ in names, types or number of dimensions.
    """
    from google.protobuf import text_format

    old = read_config(model / CONFIG)
    new = parse_message(text, type(old)(), "the new configuration")
    for kind in ("input", "output"):
        before, after = ({t.name: t for t in getattr(config, kind)} for config in (old, new))
        odd = sorted(before.keys() ^ after.keys()) or [
            n for n in before if before[n].data_type != after[n].data_type or len(before[n].dims) != len(after[n].dims)
        ]
        if odd:
            raise AtomSieveError(
                f"version {others[-1]} of {model.name} differs in its {kind} {odd[0]!r}, and versions of a model share "
                f"one configuration; serve this ensemble under another name: NAME=PATH"
            )
        for name, tensor in after.items():
            dims = [a if a == b else -1 for a, b in zip(before[name].dims, tensor.dims, strict=True)]
            del tensor.dims[:]
            tensor.dims.extend(dims)
    return str(text_format.MessageToString(new))


def install_version(new: Path, model: Path, version: int) -> Path:
    """Move a model from a scratch folder into the repository in one step; return the version folder.

    If the model exists already, the version folder is moved first and the configuration after it; a server that reads
    in between finds a valid model, because a configuration fits all versions.
    """
    target = model / str(version)
    if not model.exists():
        new.rename(model)
        return target
    if target.exists():
        target.rename(new.parent / "replaced")
    (new / str(version)).rename(target)
    for path in sorted(new.iterdir()):
        old = model / path.name
        if path.is_dir() and old.exists():
            old.rename(new.parent / f"replaced-{path.name}")
        path.replace(old)
    return target
