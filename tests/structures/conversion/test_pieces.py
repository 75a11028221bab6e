"""Conversion in pieces: the same bytes whatever the number of processes, and after whatever end of an earlier run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from atomsieve.errors import AtomSieveError, DataError, Interrupted, UsageError
from atomsieve.structures import SourceInfo, StructureBatch, open_structures
from atomsieve.structures.block import Block, build_block
from atomsieve.structures.conversion import convert as convert_module
from atomsieve.structures.conversion import plan as plan_module
from atomsieve.structures.conversion.convert import ConvertOptions, ConvertReport, Input, convert
from atomsieve.structures.conversion.plan import make_plan
from atomsieve.structures.conversion.split import Split
from atomsieve.structures.formats import FORMATS, BadItem, Format, Item, ReadRequest
from atomsieve.structures.labels import LabelKeys
from atomsieve.structures.units import Units

PROGRAM = Path(__file__).with_name("convert_program.py")
MPIRUN = Path(sys.executable).parent / "mpirun"
SOURCE = SourceInfo("a", "PBE")


def write_frames(path: Path, first: int, count: int, *, bad: int = -1, source: str = "") -> None:
    """Write frames of an extxyz file; each has its number `n` among all files, and one may have a broken energy."""
    frames = []
    for n in range(first, first + count):
        energy = "nan" if n == bad else f"{-n / 7!r}"
        words = f'Properties=species:S:1:pos:R:3 energy={energy} mid={n} pbc="F F F"' + (source and f" src={source}")
        frames.append(f"2\n{words}\nO 0 0 0\nH 0 0 {1 + n / 1000!r}\n")
    path.write_text("".join(frames))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder of 12 files, 60 structures, of which the 17th is bad."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for k in range(12):
        write_frames(folder / ("sub" if k > 7 else ".") / f"{'z' if k > 7 else 'a'}{k:02d}.xyz", 5 * k, 5, bad=17)
    return folder


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def small(monkeypatch: pytest.MonkeyPatch, files_per_piece: int = 3) -> None:
    monkeypatch.setattr(plan_module, "FILES_PER_PIECE", files_per_piece)


def run(path: Path, out: Path, source: SourceInfo | None = SOURCE, workers: int | None = 1, **options) -> ConvertReport:
    return convert([Input(path, source)], out, ConvertOptions(**options), workers=workers)


def read(path: Path) -> StructureBatch:
    with open_structures(path) as reader:
        return reader.read(0, len(reader)).validate()


# -- the number of processes -----------------------------------------------------------------------------------------


def test_two_processes_write_what_one_writes(tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(files, tmp_path / "whole.bp")
    small(monkeypatch)
    one = run(files, tmp_path / "one.bp")
    two = run(files, tmp_path / "two.bp", workers=2)
    assert (whole.pieces, one.pieces, two.pieces) == (1, 4, 4)
    assert contents(tmp_path / "one.bp") == contents(tmp_path / "two.bp")
    expected = read(tmp_path / "whole.bp")
    found = read(tmp_path / "two.bp")
    assert found.id.tolist() == [n for n in range(60) if n != 17], "ids are places in the input"
    for name in ("positions", "energy", "id", "head"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))
    for report in (one, two):
        assert report.tally == whole.tally
        assert report.sources == whole.sources == {SOURCE: 59}
    assert whole.tally.first == {"energy not finite": f"{files}/a03.xyz: frame 2"}
    text = (tmp_path / "two.bp.skipped.csv").read_text()
    assert text == f"place,reason,detail\n{files}/a03.xyz: frame 2,energy not finite,\n"
    assert two.skipped_file == tmp_path / "two.bp.skipped.csv"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["in", *(f"{n}.bp{end}" for n in ("whole", "one", "two") for end in ("", ".skipped.csv"))]
    )


def test_a_split_in_pieces(tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = Split.parse("train=0.7,val=0.3")
    run(files, tmp_path / "whole.bp", split=split)
    small(monkeypatch)
    run(files, tmp_path / "two.bp", split=split)
    for name in ("train", "val"):
        assert np.array_equal(read(tmp_path / f"two-{name}.bp").id, read(tmp_path / f"whole-{name}.bp").id)
    assert not list(tmp_path.glob("*.partial"))


def test_sources_that_appear_in_another_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for k, source in enumerate("xyzzxy"):
        write_frames(folder / f"{k}.xyz", 2 * k, 2, source=source)
    small(monkeypatch, 2)
    report = run(folder, tmp_path / "o.bp", None, source_key="src")
    assert list(report.sources.items()) == [(SourceInfo(name), 4) for name in "xyz"]
    with open_structures(tmp_path / "o.bp") as reader:
        assert reader.sources == [SourceInfo(name) for name in "xyz"]
    assert read(tmp_path / "o.bp").head.tolist() == [0, 0, 1, 1, 2, 2, 2, 2, 0, 0, 1, 1]
    assert read(tmp_path / "o.bp").id.tolist() == list(range(12))


@pytest.mark.mpi
@pytest.mark.skipif(not MPIRUN.exists(), reason=f"no {MPIRUN}: pip install mpich")
def test_ranks_write_what_one_process_writes(tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    run(files, tmp_path / "one.bp")
    command = [str(MPIRUN), "-n", "2", sys.executable, str(PROGRAM), "3", "0", str(files), str(tmp_path / "two.bp")]
    about = ["--source", "a", "--level-of-theory", "PBE"]

    def start(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], capture_output=True, text=True, timeout=120, check=False)

    done = start()
    assert done.returncode == 2
    assert done.stderr.count("say what they are with --source NAME") == 1
    assert not list(tmp_path.glob("two*")), "an error leaves nothing behind"
    done = start(*about)
    assert done.returncode == 3, done.stderr
    assert done.stdout.count("skipped 1: energy not finite") == 1
    assert contents(tmp_path / "one.bp") == contents(tmp_path / "two.bp")


# -- an end in the middle --------------------------------------------------------------------------------------------


def test_killed_and_run_again(tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process had recorded when SIGKILL came is used, and the bytes are the same."""
    small(monkeypatch)
    run(files, tmp_path / "one.bp")
    out, records = tmp_path / "two.bp", tmp_path / "two.bp.partial" / "records"
    about = ["--source", "a", "--level-of-theory", "PBE"]
    child = subprocess.Popen([sys.executable, str(PROGRAM), "3", "60", str(files), str(out), *about])
    deadline = time.monotonic() + 60
    while not list(records.glob("piece-*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.kill()
    child.wait()
    assert not out.exists()
    report = run(files, out, units=Units.parse("", None))
    assert report.continued == 1
    assert contents(tmp_path / "one.bp") == contents(out)


def test_interrupted_and_run_again(tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    run(files, tmp_path / "one.bp")
    out = tmp_path / "two.bp"
    stop_after(monkeypatch, 2)
    with pytest.raises(Interrupted, match="run the same command again to go on"):
        run(files, out)
    monkeypatch.undo()
    small(monkeypatch)
    assert not out.exists()
    with pytest.raises(DataError, match="unfinished"):
        open_structures(out)
    (tmp_path / "two.bp.partial" / "part-00000.r002.bp.tmp").mkdir()  # as a killed process leaves it
    report = run(files, out)
    assert (report.pieces, report.continued) == (4, 2)
    assert contents(out) == contents(tmp_path / "one.bp")
    assert not list(tmp_path.glob("*.partial"))


def stop_after(monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    """Send SIGTERM to this process when it has recorded some pieces."""
    write = convert_module.write_record

    def stop(path: Path, record) -> None:
        write(path, record)
        if record.number == pieces - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(convert_module, "write_record", stop)


def test_other_options_and_changed_inputs_do_not_continue(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "o.bp"

    def break_off() -> None:
        small(monkeypatch)
        stop_after(monkeypatch, 2)
        with pytest.raises(Interrupted):
            run(files, out, overwrite=True)
        monkeypatch.undo()
        small(monkeypatch)

    break_off()
    with pytest.raises(UsageError, match=r"unfinished conversion .*options.charge: \(none\) -> 1.0.*--overwrite") as e:
        run(files, out, charge=1.0)
    assert "\n" not in str(e.value)
    write_frames(files / "a00.xyz", 0, 6)
    with pytest.raises(UsageError, match=r"inputs.0.sizes and times: "):
        run(files, out)
    assert run(files, out, overwrite=True).continued == 0
    assert len(open_structures(out)) == 60
    break_off()
    (tmp_path / "o.bp.partial" / "part-00000.r001.bp" / "data.0").write_bytes(b"")
    report = run(files, out, overwrite=True)
    assert report.continued == 1, "a piece that is damaged is converted again"


def test_an_error_leaves_nothing_behind(tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    (files / "sub" / "z11.xyz").write_text("1\nmid=none energy=0\nHe 0 0 0\n")
    for workers in (1, 2):
        with pytest.raises(DataError, match=r"z11.xyz: frame 0: 'mid' must be an integer"):
            run(files, tmp_path / "o.bp", workers=workers, keys=LabelKeys(id="mid"))
        assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_a_worker_that_is_killed(tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atomsieve.structures.conversion import workers

    small(monkeypatch)
    run(files, tmp_path / "one.bp")
    sent = workers._Worker.send
    killed: list[int] = []

    def kill_one(self, what) -> None:
        sent(self, what)
        if isinstance(what, tuple) and what[0].number == 3 and not killed:
            killed.append(self.process.pid)
            os.kill(self.process.pid, signal.SIGKILL)

    monkeypatch.setattr(workers._Worker, "send", kill_one)
    with pytest.raises(AtomSieveError, match=r"was killed, as the system does where memory runs out; .* --workers 1 "):
        run(files, tmp_path / "two.bp", workers=2)
    report = run(files, tmp_path / "two.bp")
    assert report.continued >= 1
    assert contents(tmp_path / "one.bp") == contents(tmp_path / "two.bp")


# -- spans of a large file -------------------------------------------------------------------------------------------


def read_lines(request: ReadRequest):
    """A format of spans: `> x` begins a structure of one atom, and a line of a text after it may look like one."""
    data = request.path.read_bytes()
    at = request.start
    stop = len(data) if request.stop is None else request.stop
    if not request.sure and at:  # the beginning of a line that looks like a structure
        at = data.find(b"\n>", at - 1) + 1 or len(data)
        if at % 7 == 0:
            at += 1  # and what is not even one
    k = 0
    while at < min(stop, len(data)):
        head = data.index(b"\n", at) + 1
        end = data.index(b"\n", head) + 1
        where = f"{request.path}: frame {k}"
        x = data[at:head].decode()[2:].strip()
        item = Item(np.array([1]), np.array([[float(x), 0, 0]]), np.zeros((3, 3)), np.zeros(3, bool), where)
        block: Block = build_block([item if x != "7" else BadItem("seven", where)])
        block.start, block.stop = at, end
        yield block
        at, k = end, k + 1


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    row = Format(name="lines", about="", endings=(".lines",), read=read_lines, extent=lambda path: path.stat().st_size)
    monkeypatch.setitem(FORMATS, "lines", row)
    monkeypatch.setattr(plan_module, "SMALLEST", 64)
    path = tmp_path / "x.lines"
    path.write_text("".join(f"> {k}\n{'> 99' if k % 3 else 'text'}\n" for k in range(40)))
    return path


def test_spans_that_begin_at_what_only_looks_like_a_structure(
    tmp_path: Path, lines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = lines.stat().st_size
    plan = make_plan([Input(lines)], tmp_path / "o.bp", ConvertOptions())
    bounds = [(piece.start, piece.stop) for piece in plan.pieces]
    assert len(bounds) == -(-size // 64)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == size
    assert [stop for _, stop in bounds[:-1]] == [start for start, _ in bounds[1:]]
    convert_piece, calls = convert_module.convert_piece, []

    def spy(job, piece, watch, begins=None):
        record = convert_piece(job, piece, watch, begins)
        calls.append((begins, bool(record.failed)))
        return record

    monkeypatch.setattr(convert_module, "convert_piece", spy)
    report = run(lines, tmp_path / "o.bp", None)
    assert report.pieces == len(bounds)
    first, again = [c for c in calls if c[0] is None], [c for c in calls if c[0] is not None]
    assert len(first) == len(bounds)
    assert len(again) > sum(failed for _, failed in first) > 0, "of both kinds"
    assert not any(failed for _, failed in again)
    assert report.tally.read == 40
    assert report.tally.first == {"seven": f"{lines}: frame 7"}, "frames are counted from the beginning of the file"
    found = read(tmp_path / "o.bp")
    assert found.positions[:, 0].tolist() == [k for k in range(40) if k != 7]
    assert found.id.tolist() == [k for k in range(40) if k != 7]


def test_spans_without_a_beginning(tmp_path: Path, lines: Path) -> None:
    """One structure is longer than several spans."""
    lines.write_text(f"> 1\n{'x' * 500}\n> 2\n\n> 3\n\n")
    assert run(lines, tmp_path / "o.bp", None).tally.read == 3
    assert read(tmp_path / "o.bp").positions[:, 0].tolist() == [1, 2, 3]


def test_rows_are_divided_in_whole_steps(tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(files, tmp_path / "in.bp")
    monkeypatch.setattr(plan_module, "SMALLEST", 3000)
    plan = make_plan([Input(tmp_path / "in.bp")], tmp_path / "o.bp", ConvertOptions(step_size=8))
    bounds = [(piece.start, piece.stop) for piece in plan.pieces]
    assert len(bounds) > 2
    assert all(start % 8 == 0 for start, _ in bounds)
    assert bounds[-1][1] == 59
    one = run(tmp_path / "in.bp", tmp_path / "one.bp", None, step_size=8, keys=LabelKeys(id="id"))
    assert one.sources == {SOURCE: 59}
    for name in ("id", "positions", "energy", "head"):
        assert np.array_equal(getattr(read(tmp_path / "one.bp"), name), getattr(read(tmp_path / "in.bp"), name))


# -- ids -------------------------------------------------------------------------------------------------------------


def test_ids_given_twice_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        write_frames(tmp_path / f"{name}.xyz", 1, 3)
    inputs = [Input(tmp_path / f"{name}.xyz", SOURCE) for name in ("a", "b")]
    options = {"keys": LabelKeys(id="mid")}
    with pytest.raises(DataError, match=r"3 structures have the id of an earlier one under 'mid' .the first: 1\)") as e:
        convert(inputs, tmp_path / "o.bp", ConvertOptions(**options))
    assert "--allow-duplicate-ids" in str(e.value)
    assert not list(tmp_path.glob("o.bp*"))
    report = convert(inputs, tmp_path / "o.bp", ConvertOptions(**options, allow_duplicate_ids=True))
    assert "3 structures have the id of an earlier one" in report.remarks[0]
    assert read(tmp_path / "o.bp").id.tolist() == [1, 2, 3, 1, 2, 3]
    small(monkeypatch, 1)
    with pytest.raises(AtomSieveError, match="the converted pieces are kept"):
        convert(inputs, tmp_path / "p.bp", ConvertOptions(**options))
    report = convert(inputs, tmp_path / "p.bp", ConvertOptions(**options, allow_duplicate_ids=True))
    assert report.continued == 2
    assert read(tmp_path / "p.bp").id.tolist() == [1, 2, 3, 1, 2, 3]
    write_frames(tmp_path / "b.xyz", 4, 3)
    assert convert(inputs, tmp_path / "q.bp", ConvertOptions(**options)).remarks == ()
    assert read(tmp_path / "q.bp").id.tolist() == [1, 2, 3, 4, 5, 6]


# -- the plan --------------------------------------------------------------------------------------------------------


def test_a_folder_of_many_small_files(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    for k in range(5000):
        if k % 1000 == 0:
            (folder / f"{k:05d}").mkdir(parents=True)
        (folder / f"{k // 1000 * 1000:05d}" / f"POSCAR_{k:05d}").touch()
    plan = make_plan([Input(folder)], tmp_path / "o.bp", ConvertOptions())
    assert [piece.n_files for piece in plan.pieces] == [2000, 2000, 1000]
    names = [Path(found.path).name for piece in plan.pieces for run in piece.runs for found in run.files()]
    assert names == [f"POSCAR_{k:05d}" for k in range(5000)]
    assert make_plan([Input(folder)], tmp_path / "o.bp", ConvertOptions()).digest == plan.digest


def test_what_a_folder_holds(tmp_path: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names with blanks and brackets, links, the output itself, and a dataset inside the folder."""
    inside = files / "a [1]=b c.xyz"
    write_frames(inside, 60, 1)
    (files / "link.xyz").symlink_to(inside)
    (files / "nothing.xyz").symlink_to(tmp_path / "gone.xyz")
    (files / "again").symlink_to(files / "sub")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write_frames(elsewhere / "x.xyz", 61, 1)
    (files / "further").symlink_to(elsewhere)
    (files / "loop").symlink_to(files)
    report = run(files, files / "o.bp")
    assert report.tally.read == 60 + 1 + 1 + 1 + 1
    assert report.tally.skipped == {"energy not finite": 1, "a link to nothing": 1}
    assert report.tally.first["a link to nothing"] == f"{files}/nothing.xyz"
    (files / "o.bp.skipped.csv").unlink()
    assert run(files, files / "o.bp", overwrite=True).tally.read == 64
    with pytest.raises(DataError, match=r"is a link to .*gone.xyz, which does not exist"):
        run(files / "nothing.xyz", tmp_path / "p.bp")


def test_a_folder_that_cannot_be_read(tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listdir = os.listdir

    def refuse(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(DataError, match=r"cannot read the folder .*sub: Permission denied"):
        run(files, tmp_path / "o.bp")


def test_a_file_written_meanwhile(tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atomsieve.structures.conversion import piece

    read_found = piece.read_found

    def read(request, kind, **options):
        yield from read_found(request, kind, **options)
        with request.path.open("a") as file:
            file.write("2\n")

    monkeypatch.setattr(piece, "read_found", read)
    with pytest.raises(DataError, match=r"a00.xyz was written while it was converted"):
        run(files, tmp_path / "o.bp")


def test_standard_input(tmp_path: Path) -> None:
    write_frames(tmp_path / "x.xyz", 0, 4)
    run(tmp_path / "x.xyz", tmp_path / "one.bp", keys=LabelKeys(none=True))
    command = [sys.executable, str(PROGRAM), "3", "0", "-", str(tmp_path / "two.bp"), "--no-labels"]
    done = subprocess.run(
        [*command, "--source", "a"], input=(tmp_path / "x.xyz").read_bytes(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "two.bp").positions.tolist() == read(tmp_path / "one.bp").positions.tolist()
    with pytest.raises(UsageError, match="standard input is read as extxyz"):
        run(Path("-"), tmp_path / "p.bp", format="cif")


def test_spans_of_extxyz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any cut of a real file gives what the whole file gives, and bad frames are named by where they begin."""
    write_frames(tmp_path / "x.xyz", 0, 200, bad=150)
    whole = run(tmp_path / "x.xyz", tmp_path / "whole.bp")
    monkeypatch.setattr(plan_module, "SMALLEST", 1000)
    report = run(tmp_path / "x.xyz", tmp_path / "o.bp")
    assert report.pieces > 10
    assert report.tally.skipped == whole.tally.skipped == {"energy not finite": 1}
    place = report.tally.first["energy not finite"]
    byte = int(place.rpartition(" ")[2])
    assert (tmp_path / "x.xyz").read_bytes()[byte:].startswith(b"2\nProperties") or place.endswith("frame 150")
    found, expected = read(tmp_path / "o.bp"), read(tmp_path / "whole.bp")
    for name in ("id", "positions", "energy", "head"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))
