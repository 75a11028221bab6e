"""A Triton model repository made of ensemble folders."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from atomsieve.errors import AtomSieveError, UsageError
from atomsieve.models import ensemble_id
from atomsieve.serve.config import MODEL_PY, model_config
from atomsieve.serve.settings import FILE, GFM, Settings
from atomsieve.serve.wire import given

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Served:
    """One model of a repository: its name, the folder of its ensemble, and how it is served."""

    name: str
    gfm: Path
    settings: Settings


def named(folders: Sequence[str]) -> list[tuple[str, Path]]:
    """Return name and path of folders given as `PATH` or `NAME=PATH`; a single path is named `gfm`.

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
        found.append((name, path))
    return found


def write_model(
    repository: Path,
    served: Served,
    *,
    version: int = 1,
    instances: int = 1,
    gpus: Sequence[int] = (),
    queue_delay: int = 0,
    overwrite: bool = False,
) -> Path:
    """Add a model to a repository, or a version to a model; return the version folder.

    The ensemble folder is copied, so that the repository is complete and stays as it is. It is loaded once as the
    server will load it: a backend without artefact, or a wrong head, is found here.

    Raises
    ------
    AtomSieveError
        if the version is there already (and `overwrite` is not given), or the ensemble cannot be loaded.
    """
    from atomsieve.predict import Predictor

    settings = served.settings
    own = settings.device if settings.device != "cuda" else "auto"
    predictor = Predictor.load(
        served.gfm, head=settings.head, precision=settings.precision, device=own, backend=settings.backend
    )
    model = repository / served.name
    target = model / str(version)
    if target.exists() and not overwrite:
        raise AtomSieveError(f"{target} is there already; choose another --version, or replace it with --overwrite")
    text = model_config(
        served.name,
        given(predictor.outputs, predictor.kind),
        predictor.members,
        device=settings.device,
        instances=instances,
        gpus=gpus,
        queue_delay=queue_delay,
        parameters={
            "ensemble_id": predictor.ensemble_id,
            "heads": predictor.heads,
            "default_head": predictor.head,
            "levels_of_theory": predictor.describe()["levels_of_theory"],
            "precision": predictor.precision,
            "model_card": (served.gfm / "README.md").read_text() if (served.gfm / "README.md").is_file() else "",
        },
    )
    model.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=repository, prefix=".writing-") as scratch:
        new = Path(scratch) / str(version)
        new.mkdir()
        shutil.copytree(served.gfm, new / GFM)
        (new / "model.py").write_text(MODEL_PY)
        (new / FILE).write_text(settings.model_dump_json(indent=1) + "\n")
        if ensemble_id(new / GFM) != predictor.ensemble_id:
            raise AtomSieveError(f"{served.gfm} changed while it was copied; run the command again")
        _put(Path(scratch) / "config.pbtxt", model / "config.pbtxt", text)
        _put(Path(scratch) / "labels.txt", model / "labels.txt", "".join(f"{head}\n" for head in predictor.heads))
        if target.exists():
            target.rename(Path(scratch) / "replaced")
        new.rename(target)
    return target


def _put(scratch: Path, target: Path, text: str) -> None:
    scratch.write_text(text)
    scratch.replace(target)
