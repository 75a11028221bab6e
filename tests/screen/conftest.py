"""A screening run of a thousand structures is one call."""

from __future__ import annotations

from typing import Any

import pytest

from tests.screen.screen_fakes import FakePredictor, MemoryReader, candidates

SMALL: dict[str, Any] = {"chunk_size": 64, "max_atoms": 200, "commit_seconds": 100.0, "top": 50}


@pytest.fixture
def batch():
    return candidates(1000)


@pytest.fixture
def screen(tmp_path, batch):
    """Return a function that screens `batch` into `tmp_path/"out"` with small chunks."""
    from atomsieve.screen.options import ScreenOptions
    from atomsieve.screen.run import run_screen

    def run(predictor=None, structures=None, out="out", overwrite=False, console=None, **options):
        source = MemoryReader(batch if structures is None else structures)
        return run_screen(
            tmp_path / "candidates.bp",
            "gfm",
            ScreenOptions(**{**SMALL, **options}),
            out=tmp_path / out,
            overwrite=overwrite,
            console=console,
            predictor=predictor or FakePredictor(),
            reader=source,
        )

    return run
