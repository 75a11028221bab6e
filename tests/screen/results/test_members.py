"""The energies of the members beside the rows: from the predictor to the file, through faults and old results."""

from __future__ import annotations

import json

import numpy as np
import pytest
from rich.console import Console

from atomsieve.errors import AtomSieveError, DataError
from atomsieve.predict.status import Status
from atomsieve.screen.results import ledger
from atomsieve.screen.results.integrity import find_damaged_chunks
from atomsieve.screen.results.npy_file import HEADER
from atomsieve.screen.results.record import open_results
from atomsieve.screen.results.status import read_status
from tests.screen.screen_fakes import SPREAD, FakePredictor, candidates


class WithoutMembers(FakePredictor):
    """Gives no energies of single members."""

    @property
    def capabilities(self):
        from dataclasses import replace

        return replace(super().capabilities, outputs=frozenset({"forces"}))


def test_each_row_has_the_deviations_of_its_members(screen, tmp_path):
    screen(FakePredictor(), head="all")
    results = open_results(tmp_path / "out")
    rows, found = results.rows(), results.members()
    assert found.shape == (len(rows), 3) and results.manifest["options"]["members"] == 3
    ok = rows["status"] == Status.OK
    expected = np.outer(rows["energy_per_atom"][ok], SPREAD)
    assert np.allclose(found[ok], expected, rtol=1e-5, atol=1e-7)
    assert np.isnan(found[~ok]).all() and (~ok).any()


def test_the_file_has_the_same_bytes_after_an_interruption(screen, tmp_path):
    class Breaks(FakePredictor):
        def before(self, batch):
            if self.calls == 20:
                raise ZeroDivisionError

    screen(out="whole")
    with pytest.raises(ZeroDivisionError):
        screen(Breaks(), commit_seconds=0.0)
    assert open_results(tmp_path / "out").members_path.name == "members.npy.part"
    screen()
    assert (tmp_path / "out" / "members.npy").read_bytes() == (tmp_path / "whole" / "members.npy").read_bytes()


def test_damage_is_found_and_computed_again(screen, tmp_path):
    screen()
    path = tmp_path / "out" / "members.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[: HEADER + 5] + bytes([whole[HEADER + 5] ^ 1]) + whole[HEADER + 6 :])
    assert read_status(open_results(tmp_path / "out"), verify=True).damaged == [0]
    screen()
    assert path.read_bytes() == whole
    path.write_bytes(whole[:-4])
    with pytest.raises(DataError, match=r"members\.npy has"):
        find_damaged_chunks(open_results(tmp_path / "out"))


def test_left_out_or_not_given(screen, tmp_path, capsys):
    screen(members=False)
    results = open_results(tmp_path / "out")
    assert results.members() is None and not (tmp_path / "out" / "members.npy").exists()
    assert "members" not in results.manifest["options"]
    assert all("members" not in line for line in results.folder.ledgers()[0].read_text().splitlines())
    screen(WithoutMembers(), out="none", console=Console(stderr=True, width=200))
    assert "the predictor gives no energies of single members" in capsys.readouterr().err
    assert open_results(tmp_path / "none").members() is None


def test_a_run_without_members_goes_on_without_them(screen, tmp_path):
    screen(members=False)
    for path in (tmp_path / "out" / "ledger").iterdir():
        path.unlink()
    screen()  # as an older run is continued by a version that keeps members unless asked not to
    assert open_results(tmp_path / "out").members() is None
    screen(overwrite=True)
    assert open_results(tmp_path / "out").members() is not None
    with pytest.raises(AtomSieveError, match="members"):
        screen(members=False)


def test_the_ledger_of_an_older_run_is_read(tmp_path):
    entry = ledger.Entry(3, 5, None, 64)
    assert "members" not in json.loads(ledger.encode(entry).split(b" ", 1)[1])
    assert ledger.decode(ledger.encode(entry)) == entry
    entry = ledger.Entry(3, 5, None, 64, members=7)
    assert ledger.decode(ledger.encode(entry)) == entry


def test_a_cascade_takes_the_members_of_the_better_precision(tmp_path):
    from atomsieve.screen.cascade.predictors import CascadePredictor
    from atomsieve.screen.options import ScreenOptions
    from atomsieve.screen.run import run_screen
    from tests.screen.cascade.cascade_fakes import SMALL, Better, Cheap
    from tests.screen.screen_fakes import MemoryReader

    options = ScreenOptions(**{**SMALL, "top": 20, "commit_seconds": 100.0})
    batch = candidates(300)
    pair = CascadePredictor(Cheap(), Better(), options)
    run_screen(tmp_path / "c", "gfm", options, out=tmp_path / "out", predictor=pair, reader=MemoryReader(batch))
    results = open_results(tmp_path / "out")
    rows, found = results.rows(), results.members()
    better = (rows["precision"] == 1) & (rows["status"] == Status.OK)
    expected = Better()(batch, {"energy", "energy_members"}).energy_members / np.maximum(batch.counts, 1)
    assert better.any() and not better.all()
    assert np.allclose(
        found[better] + rows["energy_per_atom"][better][:, None], expected.T[rows["position"][better]], rtol=1e-5
    )
