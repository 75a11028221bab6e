"""What people read of exports: the report, the model card, and the page of the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from atomsieve.export.interface import inputs, outputs
from atomsieve.export.report import REPORT, line, report, rows, table, tolerance_rows, write_report
from atomsieve.gfm import ExportEntry, read_manifest, record_exports
from atomsieve.gfm.backends import FORMATS
from atomsieve.gfm.card import worst
from atomsieve.models.precision import PRECISIONS
from tests.helpers import tiny_gfm

PAGE = Path(__file__).resolve().parents[2] / "docs/export.md"


def error(largest):
    return {"max": largest, "rms": largest / 10, "judged": largest, "scale": 1.0}


def entry(precision="fp32", kind="forces", **changes):
    fidelity = {
        "own_structures": False,
        "structures": {"vector": 6, "varied": 200, "ranked": 5000},
        "vector": {"energy_per_atom": error(3e-7), "force": error(2e-6)},
        "varied": {"energy_per_atom": error(1e-7), "force": error(4.2e-6), "stress": error(5e-8)},
        "ranked": {"spearman": 0.99999987, "best": 1.0, "of": 50},
    }
    if kind == "energy":
        for part in ("vector", "varied"):
            fidelity[part] = {"energy_per_atom": error(3e-7)}
    made = {
        "format": "onnx",
        "precision": precision,
        "kind": kind,
        "ensemble_id": "0" * 64,
        "files": {"model.onnx": {"size": 1_250_000, "sha256": "1" * 64}},
        "inputs": ["numbers"],
        "outputs": ["energy"],
        "versions": {"onnx": "1.23"},
        "flags": {"opset": 18},
        "machine": "A processor, AVX2",
        "fidelity": fidelity,
        "speed": {"structures_per_s": 812.4, "native": 401.6, "load_s": 0.25, "peak_mib": 321.7, "threads": 2.0},
    }
    return ExportEntry(**{**made, **changes})


@pytest.fixture
def gfm(tmp_path):
    return tiny_gfm(tmp_path / "gfm", layers=1)


def test_the_larger_of_both_parts_counts():
    fidelity = entry().fidelity
    assert worst(fidelity, "energy_per_atom") == 3e-7
    assert worst(fidelity, "force") == 4.2e-6
    assert worst(fidelity, "force", "rms") == pytest.approx(4.2e-7)
    assert worst(fidelity, "force_std") is None
    assert worst({}, "force") is None


def test_one_line_about_an_artefact():
    said = line("onnx-fp32", entry(), 12.3)
    assert said == (
        "onnx-fp32  12 s  energy within 3e-07 eV/atom  force within 4.2e-06 eV/Angstrom  812 structures/s (native 402)"
        "  1.2 MB"
    )
    assert "force" not in line("onnx-fp32-energy", entry(kind="energy"))
    assert line("onnx-fp32", entry(fidelity={}, speed={})) == "onnx-fp32  1.2 MB"


def test_the_report_has_every_artefact_and_every_number(gfm):
    made = [entry(), entry(kind="energy"), entry("bf16", fidelity={}, speed={})]
    manifest = record_exports(gfm, {e.key: e for e in made})
    text = report(manifest)
    assert text.count("| `onnx-fp32` | 3e-07 / 3e-08 | 4.2e-06 / 4.2e-07 | 5e-08 / 5e-09 | - | - | 1 | 100 % |") == 1
    assert "| 812 | 402 | 1.2 MB |" in text
    assert "| `onnx-fp32` | cpu | A processor, AVX2 | 2 | 0.25 s | 322 MiB | onnx 1.23, opset 18 |" in text
    assert "| `onnx-fp32` | 6 | 200 | 5000 |" in text
    for key in manifest.exports:
        assert text.count(f"| `{key}` |") == 3
    assert "1e-08" in text
    assert "(own)" not in text
    assert str(gfm) not in text
    widths = {len(row) for row in rows(manifest)}
    assert widths == {len(table(manifest).columns)}
    assert table(manifest).row_count == 3
    for block in text.split("\n\n"):
        assert len({row.count("|") for row in block.splitlines() if row.startswith("|")}) <= 1


def test_the_report_tells_of_structures_of_the_users_own(gfm):
    fidelity = {**entry().fidelity, "own_structures": True, "structures": {"vector": 6, "varied": 12, "ranked": 12}}
    text = report(record_exports(gfm, {"onnx-fp32": entry(fidelity=fidelity)}))
    assert "| `onnx-fp32` | 6 | 12 (own) | 12 (own) |" in text


def test_the_report_is_a_file_of_the_folder(gfm):
    assert "There are none" in report(read_manifest(gfm))
    record_exports(gfm, {"onnx-fp32": entry()})
    path = write_report(gfm)
    assert path == gfm / "exports" / REPORT
    assert path.read_text() == report(read_manifest(gfm))
    assert [p.name for p in path.parent.iterdir()] == [REPORT]


def test_the_card_lists_the_exports(gfm):
    assert "## Exports" not in (gfm / "README.md").read_text()
    record_exports(gfm, {"onnx-fp32": entry(), "onnx-fp32-energy": entry(kind="energy")})
    card = (gfm / "README.md").read_text()
    assert "| `onnx-fp32` | cpu | 3e-07 | 4.2e-06 | 1.000000 |" in card
    assert "| `onnx-fp32-energy` | cpu | 3e-07 | - | 1.000000 |" in card
    record_exports(gfm, {"onnx-fp32": None, "onnx-fp32-energy": None})
    assert "## Exports" not in (gfm / "README.md").read_text()


# -- the page of the documentation ---------------------------------------------------------------------------------


def test_the_page_documents_every_input_and_output_as_it_is():
    text = PAGE.read_text()
    slots = (
        *inputs(charge_spin=True, truncated=True),
        *outputs("forces", conservative=True, members=True),
    )
    for slot in slots:
        dtype = "working" if slot.dtype is None else str(slot.dtype)
        assert f"| `{slot.name}` | `{slot.symbol}` | {dtype} | {slot.unit} | {slot.doc} |" in text


def test_the_page_states_the_tolerances_and_names_every_choice():
    text = PAGE.read_text()
    for row in tolerance_rows():
        assert "| " + " | ".join(row) + " |" in text
    for name in (*FORMATS, *PRECISIONS):
        assert f"`{name}`" in text
