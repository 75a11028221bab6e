"""A Triton model repository made of ensemble folders."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from atomsieve.errors import AtomSieveError, DataError, UsageError, unknown
from atomsieve.gfm import ensemble_id, load_gfm
from atomsieve.gfm.exports import check_export
from atomsieve.remote.test_vector import compare_test_vector, read_test_vector
from atomsieve.remote.wire import available_outputs
from atomsieve.serve.model.settings import GFM, SETTINGS_FILE, graph_model_name
from atomsieve.serve.repository import graph_config
from atomsieve.serve.repository.config import MODEL_PY, config_parameters, instance_group, model_config
from atomsieve.serve.repository.layout import (
    CONFIG,
    RepositoryModel,
    check_target,
    install_version,
    list_other_versions,
    merge_config_versions,
    scratch_folder,
)

if TYPE_CHECKING:
    from atomsieve.predict import Predictor
    from atomsieve.serve.installation import Installation

GRAPH_BACKENDS = ("auto", "triton", "python", "none")


def write_repository(
    repository: Path,
    models: Sequence[RepositoryModel],
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

    graph_backend : backend of the graph models of ensembles served from an ONNX or TorchScript artefact: "triton"
        (Triton's own backend for the format), "python" (the same artefact in a Python model, which checks its input),
        "auto" (the first if `server` has that backend, else the second), or "none" (there are no graph models).

    Raises
    ------
    AtomSieveError
        where a name is taken or an ensemble cannot be loaded; the repository is then as it was.
    """
    if graph_backend not in GRAPH_BACKENDS:
        raise unknown("graph backend", graph_backend, GRAPH_BACKENDS)
    every: list[str] = []
    for served in models:
        backend = served.settings.backend
        if graph_backend in ("triton", "python") and backend not in graph_config.BACKENDS:
            raise UsageError(
                f"the backend {backend!r} has no models for graphs; leave --graph-backend out, or use --backend onnx "
                "or libtorch"
            )
        wanted = graph_backend != "none" and served.settings.backend in graph_config.BACKENDS
        every += [served.name, *([graph_model_name(served.name)] if wanted else [])]
    twice = sorted({name for name in every if every.count(name) > 1})
    if twice:
        raise UsageError(f"two models would be named {twice[0]!r}; give the ensembles other names: NAME=PATH")
    for name in every:
        check_target(repository, name, version, overwrite=overwrite)
    predictors = [open_checked(served) for served in models]
    made: list[tuple[Path, str]] = []
    with scratch_folder(repository) as work:
        for served, predictor in zip(models, predictors, strict=True):
            group = instance_group(served.settings.device, instances, gpus)
            new = _make_model(work, repository, served, predictor, version, instances, gpus, queue_delay)
            made.append((new, served.name))
            if graph_backend != "none" and served.settings.backend in graph_config.BACKENDS:
                native = graph_config.uses_triton_backend(graph_backend, served.settings.backend, server)
                own = new / str(version) / GFM
                graph = graph_config.make_graph_model(
                    work, repository, served, predictor, own, group, version=version, native=native
                )
                made.append((graph, graph_model_name(served.name)))
        return [install_version(new, repository / name, version) for new, name in made]


def _make_model(
    work: Path,
    repository: Path,
    served: RepositoryModel,
    predictor: Predictor,
    version: int,
    instances: int,
    gpus: Sequence[int],
    queue_delay: int,
) -> Path:
    """Make a model in the scratch folder `work`; return its folder, for `install_version`."""
    others = list_other_versions(repository / served.name, version)
    text = model_config(
        served.name,
        available_outputs(predictor.capabilities.outputs, predictor.kind),
        predictor.members,
        device=served.settings.device,
        instances=instances,
        gpus=gpus,
        queue_delay=queue_delay,
        parameters=config_parameters(predictor) | {"model_card": _card(served.gfm)},
    )
    if others:
        text = merge_config_versions(repository / served.name, text, others)
    new = work / served.name / "model"
    folder = new / str(version)
    folder.mkdir(parents=True)
    copy_ensemble(served.gfm, folder / GFM, predictor)
    (folder / "model.py").write_text(MODEL_PY)
    (folder / SETTINGS_FILE).write_text(served.settings.model_dump_json(indent=1) + "\n")
    (new / CONFIG).write_text(text)
    (new / "labels.txt").write_text("".join(f"{head}\n" for head in predictor.capabilities.choices))
    return new


def open_checked(served: RepositoryModel) -> Predictor:
    """Open the predictor of a model and compare it with its test vector, as the server will."""
    from atomsieve.predict import Predictor
    from atomsieve.serve.model.engine import Engine

    s = served.settings
    device = s.device if s.device != "cuda" else "auto"  # which need not be on the machine that writes the repository
    predictor = Predictor.load(served.gfm, head=s.head, precision=s.precision, device=device, backend=s.backend)
    gives = available_outputs(predictor.capabilities.outputs, predictor.kind)
    try:
        compare_test_vector(read_test_vector(served.gfm), Engine(predictor, s).answer_one, predictor.precision, gives)
    except AtomSieveError as error:
        raise DataError(f"{served.gfm} does not give its own test vector ({error}); make the folder anew") from error
    return predictor


def _card(gfm: Path) -> str:
    card = gfm / "README.md"
    return card.read_text() if card.is_file() else ""


def copy_ensemble(source: Path, target: Path, predictor: Predictor) -> None:
    """Copy an ensemble folder, and check that the copy is complete and the ensemble that was opened.

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
