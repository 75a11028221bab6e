"""The columns: one aligned record, text that reads back, names that are checked."""

from __future__ import annotations

import numpy as np
import pytest

from atomsieve.errors import UsageError
from atomsieve.predict.domain_flags import Outside
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results.columns import (
    COLUMNS,
    MEASURED,
    ROW,
    blank_rows,
    describe,
    format_value,
    rankable,
    reasons_text,
)


def test_the_record_is_compact_and_aligned():
    assert ROW.itemsize == 72
    for name in ROW.names:
        dtype, offset = ROW.fields[name][:2]
        assert offset % dtype.itemsize == 0
        assert dtype.byteorder in "<|="
    assert [c["name"] for c in describe()] == list(COLUMNS)


def test_blank_rows_have_no_numbers():
    rows = blank_rows(3)
    assert all(np.isnan(rows[name]).all() for name in MEASURED)
    assert set(MEASURED) == {c.name for c in COLUMNS.values() if c.dtype.startswith("<f")}


@pytest.mark.parametrize("value", [1 / 3, -1e-300, 12345.678901234567])
def test_text_reads_back_to_the_same_number(value):
    assert float(format_value("energy", np.float64(value))) == value
    single = np.float32(value)
    assert np.float32(format_value("max_force", single)) == single
    assert format_value("energy", np.float64("nan")) == ""


def test_reasons_have_names():
    reasons = {int(reason): reason.name for reason in Outside}
    assert reasons_text(0, reasons) == ""
    assert reasons_text(2 | 8, reasons) == "UNSEEN_PAIR+FAR_FROM_TRAINING"
    assert reasons_text(1 | 128, reasons) == "UNSEEN_ELEMENT+128"  # of a later version
    assert all(reason.meaning for reason in Outside)


def test_an_unknown_column_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'energy_per_atom'"):
        rankable("energy_per_atm")
    with pytest.raises(UsageError, match="cannot be ranked by 'status'"):
        ScreenOptions(by="status")


@pytest.mark.parametrize("wrong", [{"precision": "fp31"}, {"top": -1}, {"limit": 0}, {"max_atoms": 0}])
def test_options_are_checked(wrong):
    with pytest.raises(UsageError, match=str(next(iter(wrong.values())))):
        ScreenOptions(**wrong)
