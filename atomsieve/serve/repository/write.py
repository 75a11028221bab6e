"""A Triton model repository made of ensemble folders."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from atomsieve.errors import AtomSieveError, DataError, UsageError, require, unknown
from atomsieve.gfm import ensemble_id, load_gfm
from atomsieve.gfm.exports import check_export
from atomsieve.gfm.folder import MANIFEST
from atomsieve.remote.test_vector import compare, stored_vector
from atomsieve.remote.wire import given
from atomsieve.serve.model.settings import FILE, GFM, Settings, graph_model_name
from atomsieve.serve.repository.config import MODEL_PY, instance_group, model_config

if TYPE_CHECKING:
    from atomsieve.predict import Predictor
    from atomsieve.serve.server.process import Installation

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
CONFIG = "config.pbtxt"
WRITER = "atomsieve"
"""Parameter of a configuration by which the models that were written here are known; its value is our version."""
GRAPH_BACKENDS = ("auto", "triton", "python", "none")


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


def write_repository(
    repository: Path,
    models: Sequence[Served],
    *,
    version: int = 1,
    instances: int = 1,
    gpus: Sequence[int] = (),
    queue_delay: int = 0,
    overwrite: bool = False,
    graph_backend: str = "none",
    server: Installation | None = None,
) -> list[Path]:
    """Add models to a repository, or a version to each; return the version folders.

    The ensemble folders are copied, so that the repository is complete and stays as it is. Each is loaded once as the
    server will load it: a backend without artefact, or a wrong head, is found here.

    graph_backend : what runs the graph models of ensembles served from an ONNX or TorchScript artefact: "triton"
        (Triton's own backend for the format), "python" (the same artefact in a Python model, which checks its input),
        "auto" (the first if `server` has that backend, else the second), or "none" (there are no graph models).

    Raises
    ------
    AtomSieveError
        where a name is taken or an ensemble cannot be loaded; the repository is then as it was.
    """
    from atomsieve.serve.graph import config as graphs

    if graph_backend not in GRAPH_BACKENDS:
        raise unknown("graph backend", graph_backend, GRAPH_BACKENDS)
    every: list[str] = []
    for served in models:
        backend = served.settings.backend
        if graph_backend in ("triton", "python") and backend not in graphs.BACKENDS:
            raise UsageError(
                f"the backend {backend!r} has no models for graphs; leave --graph-backend out, or use --backend onnx "
                "or libtorch"
            )
        wanted = graph_backend != "none" and served.settings.backend in graphs.BACKENDS
        every += [served.name, *([graph_model_name(served.name)] if wanted else [])]
    twice = sorted({name for name in every if every.count(name) > 1})
    if twice:
        raise UsageError(f"two models would be named {twice[0]!r}; give the ensembles other names: NAME=PATH")
    for name in every:
        check_room(repository, name, version, overwrite=overwrite)
    predictors = [opened(served) for served in models]
    made: list[tuple[Path, str]] = []
    with scratch(repository) as work:
        for served, predictor in zip(models, predictors, strict=True):
            group = instance_group(served.settings.device, instances, gpus)
            new = _made(work, repository, served, predictor, version, instances, gpus, queue_delay)
            made.append((new, served.name))
            if graph_backend != "none" and served.settings.backend in graphs.BACKENDS:
                native = graphs.native(graph_backend, served.settings.backend, server)
                own = new / str(version) / GFM
                graph = graphs.make_graph_model(
                    work, repository, served, predictor, own, group, version=version, native=native
                )
                made.append((graph, graph_model_name(served.name)))
        return [placed(new, repository / name, version) for new, name in made]


def _made(
    work: Path,
    repository: Path,
    served: Served,
    predictor: Predictor,
    version: int,
    instances: int,
    gpus: Sequence[int],
    queue_delay: int,
) -> Path:
    """Make a model in the scratch folder `work`; return its folder, to be `placed`."""
    others = other_versions(repository / served.name, version)
    text = model_config(
        served.name,
        given(predictor.outputs, predictor.kind),
        predictor.members,
        device=served.settings.device,
        instances=instances,
        gpus=gpus,
        queue_delay=queue_delay,
        parameters=facts(predictor) | {"model_card": _card(served.gfm)},
    )
    if others:
        text = agreed(repository / served.name, text, others)
    new = work / served.name / "model"
    folder = new / str(version)
    folder.mkdir(parents=True)
    copied(served.gfm, folder / GFM, predictor)
    (folder / "model.py").write_text(MODEL_PY)
    (folder / FILE).write_text(served.settings.model_dump_json(indent=1) + "\n")
    (new / CONFIG).write_text(text)
    (new / "labels.txt").write_text("".join(f"{head}\n" for head in predictor.choices))
    return new


def opened(served: Served) -> Predictor:
    """Return the predictor of a model, opened and compared with its test vector as the server will do it."""
    from atomsieve.predict import Predictor
    from atomsieve.serve.model.engine import Engine

    s = served.settings
    device = s.device if s.device != "cuda" else "auto"  # which need not be on the machine that writes the repository
    predictor = Predictor.load(served.gfm, head=s.head, precision=s.precision, device=device, backend=s.backend)
    gives = given(predictor.outputs, predictor.kind)
    try:
        compare(stored_vector(served.gfm), Engine(predictor, s).answer_one, predictor.precision, gives)
    except AtomSieveError as error:
        raise DataError(f"{served.gfm} does not give its own test vector ({error}); make the folder anew") from error
    return predictor


def facts(predictor: Predictor) -> dict[str, Any]:
    """Return what the configuration tells clients of an ensemble."""
    from atomsieve.version import __version__

    about = predictor.describe()
    return {
        WRITER: __version__,
        "ensemble_id": predictor.ensemble_id,
        "heads": predictor.choices,
        "default_head": predictor.head,
        "levels_of_theory": about["levels_of_theory"],
        "elements": {head: predictor.elements(head) for head in predictor.choices},
        "members": predictor.members,
        "cutoff": predictor.cutoff,
        "precision": predictor.precision,
        "backend": predictor.backend,
    }


def _card(gfm: Path) -> str:
    card = gfm / "README.md"
    return card.read_text() if card.is_file() else ""


def copied(source: Path, target: Path, predictor: Predictor) -> None:
    """Copy an ensemble folder, and check that the copy is whole and the one that was opened.

    Raises
    ------
    AtomSieveError
        if the source changed meanwhile.
    """
    try:
        shutil.copytree(source, target)
        _, manifest = load_gfm(target)
        for entry in manifest.exports.values():
            check_export(target, entry)
        same = ensemble_id(target) == predictor.ensemble_id
    except (OSError, shutil.Error, DataError):
        same = False
    if not same:
        raise AtomSieveError(
            f"{source} changed while it was copied, or an export in it is damaged; run the command again, or make its "
            f"exports anew with: atomsieve export {source} --force"
        )


# -- folders and files ---------------------------------------------------------------------------------------------


@contextmanager
def scratch(repository: Path) -> Iterator[Path]:
    """Make a folder beside the models, which a server does not look at, and remove it in the end."""
    new = not repository.exists()
    repository.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory(dir=repository, prefix=".writing-") as name:
            yield Path(name)
    finally:
        if new and not any(repository.iterdir()):
            repository.rmdir()


def check_room(repository: Path, name: str, version: int, *, overwrite: bool) -> None:
    """Refuse a place that holds something else, before anything is done.

    Raises
    ------
    UsageError
        for a version below 1; AtomSieveError for what is there.
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
    """Return the parameters of a model's configuration, nothing where it has none that can be read."""
    try:
        parameters: Mapping[str, Any] = read_config(model / CONFIG).parameters
    except (OSError, ValueError, DataError):
        return {}
    return parameters


def read_config(path: Path) -> Any:
    """Return a configuration, parsed by Triton's own schema.

    Raises
    ------
    DataError
        if it is none.
    """
    schema = require("tritonclient.grpc.model_config_pb2", "serve", "reading a model repository")
    return parsed(path.read_text(), schema.ModelConfig(), str(path))


def parsed(text: str, into: Any, what: str) -> Any:
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
        raise DataError(f"{what} is no model configuration ({error})") from error


def other_versions(model: Path, version: int) -> list[int]:
    """Return the versions of a model beside one."""
    if not model.is_dir():
        return []
    found = [int(p.name) for p in model.iterdir() if p.name.isdigit() and p.is_dir()]
    return sorted(n for n in found if n != version)


def agreed(model: Path, text: str, others: Sequence[int]) -> str:
    """Return a configuration that serves the versions that are there as well: all of a model share one.

    Raises
    ------
    AtomSieveError
        if they take or give something else.
    """
    from google.protobuf import text_format

    old = read_config(model / CONFIG)
    new = parsed(text, type(old)(), "the new configuration")
    for what in ("input", "output"):
        before, after = ({t.name: t for t in getattr(config, what)} for config in (old, new))
        odd = sorted(before.keys() ^ after.keys()) or [
            n for n in before if before[n].data_type != after[n].data_type or len(before[n].dims) != len(after[n].dims)
        ]
        if odd:
            raise AtomSieveError(
                f"version {others[-1]} of {model.name} differs in its {what} {odd[0]!r}, and versions of a model share "
                f"one configuration; serve this ensemble under another name: NAME=PATH"
            )
        for name, tensor in after.items():
            dims = [a if a == b else -1 for a, b in zip(before[name].dims, tensor.dims, strict=True)]
            del tensor.dims[:]
            tensor.dims.extend(dims)
    return str(text_format.MessageToString(new))


def placed(new: Path, model: Path, version: int) -> Path:
    """Move a model that was made in a scratch folder to its place, whole; return the version folder.

    Where the model is there already, the version comes first and its configuration after it: both orders are sound,
    because a configuration fits all versions.
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
