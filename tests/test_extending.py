"""docs/extending.md is carried out: its files and rows are put into a copy of the package, which then must work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import atomsieve
from atomsieve.structures import open_structures, write_structures
from tests.helpers import copper_oxides, tiny_gfm

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extending.md"
ROWS = {  # file with the table, a line of it, and the new line before it
    "atomsieve/structures/formats/registry.py": [
        ("from atomsieve.structures.formats.base import", "from atomsieve.structures.formats import jsonlines\n"),
        ("        extxyz.ROW,", "        {FORMATS},\n"),
    ],
    "atomsieve/gfm/backends.py": [('        BackendSpec("pt2"', "        {BACKENDS},\n")],
    "atomsieve/cli/screen/__init__.py": [('"run", "status"', "{VERBS}, ")],
}

pytestmark = [pytest.mark.e2e]


def blocks(language: str = "python") -> dict[str, str]:
    """Return the code of the page by the path that its first line names."""
    found = re.findall(rf"```{language}\n# (?:file|row): (\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return dict(found)


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A copy of the package with all that the page adds, and nothing else."""
    root = tmp_path_factory.mktemp("extended")
    package = Path(atomsieve.__file__).parent
    shutil.copytree(package, root / "atomsieve", ignore=shutil.ignore_patterns("__pycache__"))
    written = blocks()
    for path, code in written.items():
        if path.endswith(".py"):
            assert not (root / path).exists(), path
            (root / path).write_text(code)
    rows = {name: written[name].strip() for name in ("FORMATS", "BACKENDS", "VERBS")}
    for path, insertions in ROWS.items():
        text = (root / path).read_text()
        for line, new in insertions:
            assert text.count(line) == 1, (path, line)
            text = text.replace(line, new.format(**rows) + line)
        (root / path).write_text(text)
    write_structures(root / "candidates.bp", copper_oxides(30, seed=2))
    tiny_gfm(root / "gfm", hidden=8, layers=1, head_hidden=8)
    return root


def run(root: Path, *words: str, module: str = "atomsieve", expect: int = 0) -> str:
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", module, *words], cwd=root, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == expect, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def test_the_page_holds_every_exercise():
    assert set(blocks()) == {
        "atomsieve/models/schnet.py",
        "test_schnet.py",
        "atomsieve/structures/formats/jsonlines.py",
        "atomsieve/export/to_program.py",
        "FORMATS",
        "BACKENDS",
        "VERBS",
        "atomsieve/cli/screen/elements.py",
    }


@pytest.mark.parametrize("tests", ["not exported_files", pytest.param("exported_files", marks=pytest.mark.nightly)])
def test_the_encoder_passes_the_public_kit(extended, tests):
    printed = run(extended, "-q", "-p", "no:cacheprovider", "test_schnet.py", "-k", tests, module="pytest")
    assert re.search(r"\d passed" if tests == "exported_files" else r"\d\d passed", printed), printed


def test_the_format_is_written_and_read(extended):
    run(extended, "data", "export", "candidates.bp", "out.structures")
    run(extended, "data", "convert", "out.structures", "back.bp", "--source", "mine", "--level-of-theory", "none")
    before, after = (open_structures(extended / name) for name in ("candidates.bp", "back.bp"))
    first, second = before.read(0, len(before)), after.read(0, len(after))
    assert first.positions.tolist() == second.positions.tolist()
    assert first.numbers.tolist() == second.numbers.tolist()
    printed = run(extended, "data", "export", "candidates.bp", "out.structure", expect=2)
    assert "did you mean '.structures'" in printed


@pytest.mark.nightly
def test_the_backend_is_exported_checked_and_screens(extended):
    printed = run(extended, "export", "gfm", "--format", "program", "--precision", "fp64")
    assert "program-fp64" in printed
    for backend in ("program", "native"):
        words = ("--backend", backend, "--precision", "fp64", "--out", f"{backend}.results", "--quiet")
        run(extended, "screen", "run", "candidates.bp", "-e", "gfm", *words)
    tables = [(extended / f"{b}.results" / "top.csv").read_text().splitlines() for b in ("program", "native")]
    assert len(tables[0]) == len(tables[1]) == 31
    places = [tables[0][0].split(",").index(name) for name in ("position", "energy_per_atom [eV/atom]")]
    for one, other in zip(tables[0][1:], tables[1][1:], strict=True):
        (p, e), (q, f) = ([row.split(",")[k] for k in places] for row in (one, other))
        assert p == q, (one, other)
        assert float(e) == pytest.approx(float(f), rel=1e-6)


def test_the_verb_is_listed_and_counts(extended):
    assert "Count the elements of the best structures." in run(extended, "screen", "--help")
    run(extended, "screen", "run", "candidates.bp", "-e", "gfm", "--out", "count.results", "--quiet")
    printed = run(extended, "screen", "elements", "count.results", "--top", "10", "--where", "natoms > 0")
    counts = {symbol: int(n.replace(",", "")) for symbol, n in re.findall(r"^(\w+) +([\d,]+)$", printed, re.MULTILINE)}
    assert set(counts) <= {"Cu", "O"}
    assert sum(counts.values()) >= 10
