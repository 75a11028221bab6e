"""One real server for the tests that leave it as it is."""

from __future__ import annotations

import pytest

from atomsieve.predict import Predictor
from atomsieve.serve.model.settings import Settings
from atomsieve.serve.repository.layout import RepositoryModel
from tests.helpers import tiny_gfm
from tests.serve.exported import KINDS, add_export
from tests.serve.repositories import write_model
from tests.serve.triton import RunningServer, installation


@pytest.fixture(scope="session")
def served_gfm(tmp_path_factory):
    """An untrained ensemble folder with two heads, `organic` and `metal`."""
    return tiny_gfm(tmp_path_factory.mktemp("served") / "gfm")


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A smaller ensemble, with an artefact of each kind."""
    pytest.importorskip("onnxruntime")
    gfm = tiny_gfm(tmp_path_factory.mktemp("exported") / "gfm", members=2, hidden=8, layers=1, head_hidden=8)
    for kind in KINDS:
        add_export(gfm, kind)
    return gfm


@pytest.fixture(scope="session")
def repository(served_gfm, tmp_path_factory):
    """A model repository that serves it as `gfm`, in fp64 on one thread."""
    target = tmp_path_factory.mktemp("repository")
    write_model(target, RepositoryModel("gfm", served_gfm, Settings(precision="fp64", threads=1)))
    return target


@pytest.fixture(scope="session")
def server(repository):
    """A server of the repository, shared: tests must not stop it or kill its parts."""
    installation()
    running = RunningServer(repository)
    yield running
    running.close()


@pytest.fixture(scope="session")
def local(served_gfm):
    """The predictor that the server must agree with."""
    return Predictor.load(served_gfm, precision="fp64")
