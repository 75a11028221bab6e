"""The five steps of a set-up: each returns one frozen value and prints nothing; the greeting prints."""

from __future__ import annotations

import pickle
from contextlib import ExitStack
from dataclasses import FrozenInstanceError, is_dataclass
from io import StringIO

import pytest
from rich.console import Console

from atomsieve.errors import DataError, UsageError
from atomsieve.runs.mpi import Communicator
from atomsieve.runs.signals import StopRequest
from atomsieve.screen.engine.reporter import Reporter
from atomsieve.screen.greeting import format_claim, format_plan, format_recovered, greet
from atomsieve.screen.load import GivenPredictor, PredictorLoader, open_input, open_model
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results.files import ResultsFolder
from atomsieve.screen.run import make_context
from atomsieve.screen.setup import claim_folder, make_plan, recover
from atomsieve.screen.telemetry.clock import Clock
from tests.helpers import tiny_gfm
from tests.screen.conftest import SMALL
from tests.screen.screen_fakes import FakePredictor, MemoryReader


def set_up(folder, batch, stack, predictor=None, **options):
    """Return the values of the five steps, and the context between the last two."""
    comm, chosen = Communicator(), ScreenOptions(**{**SMALL, **options})
    source = open_input(comm, folder / "c.bp", chosen, MemoryReader(batch), stack)
    results = ResultsFolder(folder / "out")
    given = predictor or FakePredictor()
    model = open_model(comm, "gfm", chosen, results, served=None, predictor=given, overwrite=False, stack=stack)
    plan = make_plan(comm, source, model, chosen, results, overwrite=False)
    claim = claim_folder(comm, plan, overwrite=False, stack=stack)
    context = make_context(comm, plan, claim, StopRequest(), Clock(), None)
    return source, model, plan, claim, recover(context, plan, claim)


def test_every_step_gives_a_frozen_value_and_prints_nothing(tmp_path, batch, capfd):
    with ExitStack() as stack:
        values = set_up(tmp_path, batch, stack)
        for value in values:
            assert is_dataclass(value)
            with pytest.raises(FrozenInstanceError):
                value.anything = 1
    assert capfd.readouterr() == ("", "")


def test_nothing_is_written_before_the_folder_is_claimed(tmp_path, batch):
    comm, options = Communicator(), ScreenOptions(**SMALL)
    with ExitStack() as stack:
        source = open_input(comm, tmp_path / "c.bp", options, MemoryReader(batch), stack)
        folder, fake = ResultsFolder(tmp_path / "out"), FakePredictor()
        model = open_model(comm, "gfm", options, folder, served=None, predictor=fake, overwrite=False, stack=stack)
        plan = make_plan(comm, source, model, options, folder, overwrite=False)
        assert list(tmp_path.iterdir()) == []
        claim_folder(comm, plan, overwrite=False, stack=stack)
        assert {path.name for path in folder.path.iterdir()} >= {"run.json", "lock.json", "rows.npy.part", "ledger"}
    assert not folder.lock.exists(), "the lock is given back with the stack"


def test_what_is_recovered_is_what_was_done(tmp_path, batch, screen):
    with ExitStack() as stack:
        *_, found = set_up(tmp_path, batch, stack)
        assert (len(found.done), found.damaged, found.suspects, found.todo) == (0, 0, {}, list(range(found.count)))
        assert found.tally.status.total() == 0
    screen()
    rows = (tmp_path / "out/rows.npy").read_bytes()
    (tmp_path / "out/rows.npy").write_bytes(rows[:-1] + bytes([rows[-1] ^ 1]))  # the last chunk
    with ExitStack() as stack:
        _, _, plan, claim, found = set_up(tmp_path, batch, stack)
        assert (len(found.done), found.damaged, found.todo) == (found.count - 1, 1, [found.count - 1])
        assert found.tally.status.total() == plan.source.chunks.start(found.count - 1)
        lines = [*format_claim(claim), *format_recovered(found)]
    assert lines == [
        f"continuing: {found.count - 1} of {found.count} chunks are done",
        "1 chunks do not fit their checksums and are computed again",
    ]


def test_the_greeting_names_the_choices(tmp_path, batch):
    text = StringIO()
    with ExitStack() as stack:
        _, _, plan, _, _ = set_up(tmp_path, batch, stack, head="all")
        greet(Reporter(Console(file=text, width=40)), plan)
        greet(Reporter(), plan)  # no console: other ranks
        lines = list(format_plan(plan))
    assert text.getvalue().splitlines() == lines, "never wrapped"
    assert lines[:2] == ["head: pbe, scan", f"results: {tmp_path / 'out'}"]


def test_errors_of_the_steps(tmp_path, batch):
    with ExitStack() as stack:
        with pytest.raises(DataError, match="holds no structures"):
            open_input(Communicator(), tmp_path / "c.bp", ScreenOptions(), MemoryReader(batch.slice(0, 0)), stack)
        with pytest.raises(UsageError, match="unknown head 'pbee'"):
            set_up(tmp_path, batch, stack, head="pbee")
        with pytest.raises(UsageError, match="the given predictor has one precision"):
            set_up(tmp_path, batch, stack, cascade="bf16:fp32")


def test_another_process_gets_the_same_predictor(tmp_path):
    again = pickle.loads(pickle.dumps(GivenPredictor(FakePredictor(ensemble_id="x" * 64))))()
    assert again.ensemble_id == "x" * 64
    gfm = tiny_gfm(tmp_path / "gfm")
    options = ScreenOptions(precision="fp64")
    with ExitStack() as stack:
        model = open_model(
            Communicator(),
            gfm,
            options,
            ResultsFolder(tmp_path / "out"),
            served=None,
            predictor=None,
            overwrite=False,
            stack=stack,
        )
        assert isinstance(model.reload, PredictorLoader) and model.loaded
        again = pickle.loads(pickle.dumps(model.reload))()
    assert again.describe() == model.predictor.describe()
