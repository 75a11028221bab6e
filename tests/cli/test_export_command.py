"""`atomsieve export`: what is asked for, what is told, and the exit codes. What is slow is pretended."""

from __future__ import annotations

import pytest

from atomsieve.cli.main import run
from atomsieve.errors import DataError
from atomsieve.export import run as export_run
from atomsieve.export.run import ExportOutcome
from atomsieve.gfm import ExportEntry, read_manifest, record_exports
from atomsieve.runs.hashing import hash_file
from tests.helpers import tiny_gfm


def call(*args) -> int:
    return run("atomsieve", ["export", *map(str, args)])


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def gfm(tmp_path):
    return tiny_gfm(tmp_path / "gfm", layers=1)


def entry(format_="onnx", files=None, **changes) -> ExportEntry:
    errors = {"energy_per_atom": {"max": 3e-7, "rms": 1e-7}, "force": {"max": 2e-6, "rms": 1e-6}}
    return ExportEntry(
        format=format_,
        precision="fp32",
        ensemble_id="0" * 64,
        inputs=[],
        outputs=[],
        versions={"x": "1"},
        files=files or {"model": {"size": 2_000_000, "sha256": "0" * 64}},
        fidelity={"varied": errors},
        speed={"structures_per_s": 812.0, "native": 300.0},
        **changes,
    )


@pytest.fixture
def made(monkeypatch):
    """Pretend to export; returns the list of calls."""
    calls = []

    def export_gfm(folder, options, say, done):
        calls.append((folder, options))
        outcomes = [
            ExportOutcome("torchscript-fp32", "kept", entry("torchscript"), 0.0),
            ExportOutcome("onnx-fp32", "written", entry(), 12.4),
        ]
        done(outcomes[0])
        say("onnx-fp32: lowering")
        done(outcomes[1])
        return outcomes

    monkeypatch.setattr(export_run, "export_gfm", export_gfm)
    return calls


def test_a_folder_is_enough(gfm, made, capsys):
    assert call(gfm) == 0
    (folder, options), said = made[0], capsys.readouterr()
    assert folder == gfm
    assert (options.formats, options.precisions, options.kind, options.device) == (
        ("onnx",),
        ("fp32",),
        "forces",
        "cpu",
    )
    assert not options.members
    assert not options.force
    assert options.structures is None
    assert said.err == "onnx-fp32: lowering\n"
    kept, written = said.out.splitlines()
    assert written == (
        "written onnx-fp32  12 s  energy within 3e-07 eV/atom  force within 2e-06 eV/Angstrom  "
        "812 structures/s (native 300)  2.0 MB"
    )
    assert kept.startswith("kept    torchscript-fp32  energy within")
    assert "--force" in kept


@pytest.mark.parametrize("first", [True, False])
def test_everything_can_be_asked_for_before_or_after_the_folder(gfm, made, tmp_path, first, capsys):
    (tmp_path / "own.bp").mkdir()  # its path is checked, its content later
    words = [
        "--format",
        "onnx",
        "-f",
        "pt2",
        "--precision",
        "bf16",
        "-p",
        "fp64",
        "--energy-only",
        "--device",
        "cuda",
        "--force",
        "--structures",
        tmp_path / "own.bp",
        "--quiet",
    ]
    assert call(*([*words, gfm] if first else [gfm, *words])) == 0
    folder, options = made[0]
    assert folder == gfm
    assert (options.formats, options.precisions) == (("onnx", "pt2"), ("bf16", "fp64"))
    assert (options.kind, options.device, options.force) == ("energy", "cuda", True)
    assert options.structures == tmp_path / "own.bp"
    assert capsys.readouterr().err == ""
    assert [s.key for s in options.specs()] == [
        "onnx-bf16-energy-cuda",
        "onnx-fp64-energy-cuda",
        "pt2-bf16-energy-cuda",
        "pt2-fp64-energy-cuda",
    ]


def test_run_may_be_written_out(gfm, made):
    assert call("run", gfm, "--members") == 0
    assert made[0][1].members


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "onxx"], "unknown format 'onxx' (did you mean 'onnx'?); allowed: onnx, pt2, torchscript"),
        (["--precision", "fp23"], "unknown precision 'fp23' (did you mean 'fp32'?)"),
        (["--device", "gpu"], "unknown device 'gpu' (did you mean 'cpu'?); allowed: cpu, cuda"),
        (["--energy-only", "--members"], "leave one of them out"),
        (["--nothing-like-it"], "--nothing-like-it"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_2(gfm, made, words, said, capsys):
    assert call(gfm, *words) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not made


def test_a_failed_artefact_is_told_of_and_the_exit_code_is_3(gfm, monkeypatch, capsys):
    reason = "force is off by 2.0e-03 eV/Angstrom on varied structures; fp32 may be off by 5e-05"
    outcomes = [
        ExportOutcome("onnx-fp32", "failed", entry(), 9.0, reason),
        ExportOutcome("pt2-fp32", "written", entry("pt2"), 3.0),
    ]
    monkeypatch.setattr(export_run, "export_gfm", lambda *given: [given[-1](o) for o in outcomes] and outcomes)
    assert call(gfm) == 3
    failed, written = capsys.readouterr().out.splitlines()
    assert failed == f"failed  onnx-fp32  9 s  {reason}"
    assert written.startswith("written pt2-fp32  3 s")


def test_an_error_of_the_folder_is_one_line(tmp_path, capsys):
    assert call(tmp_path / "nowhere") == 1
    assert capsys.readouterr().err.startswith("error: no ensemble at")


def test_report(gfm, capsys):
    assert call("report", gfm) == 0
    assert "no exports yet" in capsys.readouterr().out
    record_exports(gfm, {"onnx-fp32": entry()})
    assert call("report", gfm) == 0
    out = capsys.readouterr().out
    assert "onnx-fp32" in out
    assert "3e-07 / 1e-07" in out
    assert f"wrote {gfm / 'exports' / 'report.md'}" in out
    assert "3e-07 / 1e-07" in (gfm / "exports" / "report.md").read_text()


def test_report_can_measure_again(gfm, monkeypatch, capsys):
    record_exports(gfm, {"onnx-fp32": entry()})

    def recheck(folder, say):
        say("onnx-fp32: checking in a fresh process")
        record_exports(folder, {"onnx-fp32": None})
        return [
            ExportOutcome("onnx-fp32", "failed", entry(), 1.0, "energies are bad"),
            ExportOutcome("x", "written", entry(), 1.0),
        ]

    monkeypatch.setattr(export_run, "recheck", recheck)
    assert call("report", gfm, "--check") == 3
    said = capsys.readouterr()
    assert "failed  onnx-fp32  1 s  energies are bad" in said.out
    assert "written x" not in said.out
    assert "no exports yet" in said.out
    assert "checking in a fresh process" in said.err


def put(gfm, format_):
    place = gfm / "exports" / f"{format_}-fp32"
    place.mkdir(parents=True)
    (place / "model").write_text(format_)
    files = {"model": {"size": len(format_), "sha256": hash_file(place / "model")}}
    record_exports(gfm, {f"{format_}-fp32": entry(format_, files)})
    return place / "model"


def test_trust_names_and_marks_the_files_that_hold_code(gfm, state, capsys):
    put(gfm, "onnx")
    assert call("trust", gfm) == 0
    assert "nothing to trust" in capsys.readouterr().out
    code = put(gfm, "torchscript")
    assert call("trust", gfm) == 0
    out = capsys.readouterr().out
    assert f"torchscript-fp32/model  sha256 {hash_file(code)[:16]}" in out
    assert "onnx-fp32/model" not in out
    assert "1 file may be opened" in out
    assert [p.name for p in (state / "atomsieve" / "trusted").iterdir()] == [hash_file(code)]


def test_what_was_changed_is_not_trusted(gfm, state, capsys):
    put(gfm, "pt2").write_text("pt3")
    assert call("trust", gfm) == DataError.exit_code
    assert "damaged or was changed" in capsys.readouterr().err
    assert not (state / "atomsieve" / "trusted").exists()
    assert list(read_manifest(gfm).exports) == ["pt2-fp32"]
