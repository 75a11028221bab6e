"""What a user sees when files are damaged, lie, are in use, or do not fit on the disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from atomsieve.errors import AtomSieveError, DataError, UsageError
from atomsieve.runs.hashing import hash_json
from atomsieve.structures import SourceInfo, StructureBatch, StructureWriter, open_structures, write_structures
from atomsieve.structures.dataset.part_writer import PartWriter
from tests.structures.structure_samples import assert_equal, random_batch

SOURCE = [SourceInfo("a", "PBE")]
PART = "part-00000.r000.bp"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "x.bp"
    write_structures(path, random_batch(60, smallest=1), SOURCE, step_size=20)
    return path


def read_all(path: Path) -> None:
    with open_structures(path) as reader:
        reader.counts()
        reader.read(0, len(reader))


def edit(path: Path, change: Callable[[dict], object], *, resign: bool = True) -> None:
    content = json.loads((path / "manifest.json").read_text())
    content.pop("sha256")
    change(content)
    content["sha256"] = hash_json(content) if resign else "0" * 64
    (path / "manifest.json").write_text(json.dumps(content))


def one_line(error: pytest.ExceptionInfo[AtomSieveError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["data.0", "md.0", "md.idx", "mmd.0"])
def test_one_byte_changed(dataset: Path, name: str) -> None:
    victim = dataset / PART / name
    content = bytearray(victim.read_bytes())
    rng = np.random.default_rng(1)
    for place in rng.integers(0, len(content), 6):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        victim.write_bytes(damaged)
        with pytest.raises(DataError, match="damaged") as caught:
            read_all(dataset)
        assert name in one_line(caught) or "atom counts" in one_line(caught)
    victim.write_bytes(content)
    read_all(dataset)


def test_only_the_steps_that_are_read_are_verified(dataset: Path) -> None:
    victim = dataset / PART / "data.0"
    content = bytearray(victim.read_bytes())
    content[-100] ^= 1
    victim.write_bytes(content)
    with open_structures(dataset) as reader:
        reader.read(0, 40)
        with pytest.raises(DataError, match="step 2"):
            reader.read(39, 41)
        with pytest.raises(DataError, match="damaged"):
            reader.verify_all()
    with open_structures(dataset, verify="size") as reader:
        reader.read(0, 60)


@pytest.mark.parametrize("name", ["data.0", "md.0", "md.idx", "mmd.0"])
def test_truncated_or_missing(dataset: Path, name: str) -> None:
    victim = dataset / PART / name
    content = victim.read_bytes()
    for keep in (0, 10, len(content) - 1):
        victim.write_bytes(content[:keep])
        with pytest.raises(DataError, match="the manifest says") as caught:
            open_structures(dataset)
        assert str(keep) in one_line(caught)
    victim.unlink()
    with pytest.raises(DataError, match="is missing"):
        open_structures(dataset)


def test_part_missing(dataset: Path) -> None:
    shutil.rmtree(dataset / PART)
    with pytest.raises(DataError, match="missing"):
        open_structures(dataset)


LIES: list[tuple[str, Callable[[dict], object], str]] = [
    ("total", lambda m: m["totals"].update(structures=61), "do not add up"),
    ("atoms", lambda m: m["totals"].update(atoms=10), "do not add up"),
    ("part", lambda m: m["parts"][0].update(structures=61), "do not add up"),
    ("size", lambda m: m["parts"][0]["files"]["md.0"].update(size=3), "the manifest says 3"),
    ("hash", lambda m: m["parts"][0]["files"]["md.0"].update(sha256="0" * 64), "damaged"),
    ("crc", lambda m: m["parts"][0]["steps"][1].update(crc32=5), "damaged"),
    ("counts", lambda m: m["parts"][0]["steps"][1].update(counts_crc32=5), "damaged"),
    ("negative", lambda m: m["parts"][0]["steps"][1].update(atoms=-5), "greater than or equal to 0"),
    ("type", lambda m: m["parts"][0]["steps"][1].update(atoms="many"), "valid integer"),
    ("escape", lambda m: m["parts"][0].update(path="../x.bp/part-00000.r000.bp"), "should match pattern"),
    ("absolute", lambda m: m["parts"][0].update(path="/etc"), "should match pattern"),
    ("file", lambda m: m["parts"][0]["files"].update({"../../passwd": {"size": 1}}), "must list the files"),
    ("field", lambda m: m["parts"][0]["fields"].append("colour"), "unknown fields"),
    ("absent field", lambda m: m["parts"][0].update(fields=["ptr", "numbers"]), "does not hold"),
    ("twice", lambda m: m["parts"].append(m["parts"][0]), "twice"),
    ("unknown key", lambda m: m.update(extra=1), "[Ee]xtra"),
    ("ends", lambda m: m["parts"][0]["steps"][2].update(end=10**9), "do not fit its data file"),
    ("newer", lambda m: m.update(schema_version=99), "upgrade atomsieve"),
    ("no parts", lambda m: m.pop("parts"), "required"),
    ("one step less", lambda m: _drop_step(m), "steps of 'natoms'"),
    ("moved atoms", lambda m: _move_structures(m), "damaged|were asked for|add up"),
]


def _drop_step(m: dict) -> None:
    gone = m["parts"][0]["steps"].pop()
    for row in (m["totals"], m["parts"][0]):
        row["structures"] -= gone["structures"]
        row["atoms"] -= gone["atoms"]


def _move_structures(m: dict) -> None:
    m["parts"][0]["steps"][0]["structures"] += 1
    m["parts"][0]["steps"][1]["structures"] -= 1


@pytest.mark.parametrize(("change", "words"), [lie[1:] for lie in LIES], ids=[lie[0] for lie in LIES])
def test_a_manifest_that_lies(dataset: Path, change: Callable[[dict], object], words: str) -> None:
    edit(dataset, change)
    with pytest.raises(DataError, match=words) as caught:
        read_all(dataset)
    one_line(caught)


def test_a_manifest_that_was_edited(dataset: Path) -> None:
    edit(dataset, lambda m: m["sources"][0].update(name="b"), resign=False)
    with pytest.raises(DataError, match="changed after it was written"):
        open_structures(dataset)
    for text in ("", "{", "[]", '{"format": "atomsieve.structures"}', "null"):
        (dataset / "manifest.json").write_text(text)
        with pytest.raises(DataError) as caught:
            open_structures(dataset)
        one_line(caught)


def test_not_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_structures(tmp_path / "none.bp")
    (tmp_path / "a.xyz").write_text("1\n\nH 0 0 0\n")
    with pytest.raises(DataError, match="data convert"):
        open_structures(tmp_path / "a.xyz")
    (tmp_path / "empty.bp").mkdir()
    with pytest.raises(DataError, match="neither a dataset folder"):
        open_structures(tmp_path / "empty.bp")
    (tmp_path / "gfm").mkdir()
    (tmp_path / "gfm" / "manifest.json").write_text('{"format": "gfm"}')
    with pytest.raises(DataError, match="not the manifest of a structures dataset"):
        open_structures(tmp_path / "gfm")


# -- directories that are not ours: whatever happens, it is an error line, in finite time ----------------------------


def damaged_bare(tmp_path: Path, dataset: Path, name: str, how: Callable[[bytes], bytes]) -> Path:
    bare = tmp_path / "bare.bp"
    shutil.copytree(dataset / PART, bare)
    (bare / name).write_bytes(how((bare / name).read_bytes()))
    return bare


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("data.0", lambda b: b[: len(b) // 2]),
        ("data.0", lambda b: b[:-2000]),
        ("data.0", lambda b: b""),
        ("md.0", lambda b: b[: len(b) // 2]),
        ("md.idx", lambda b: b""),
        ("mmd.0", lambda b: b[: len(b) // 2]),
        ("mmd.0", lambda b: os.urandom(len(b))),
        ("md.0", lambda b: bytes(len(b))),
    ],
    ids=["half data", "short data", "no data", "half md", "no index", "half mmd", "random mmd", "zero md"],
)
def test_damaged_foreign_directory(tmp_path: Path, dataset: Path, name: str, how: Callable[[bytes], bytes]) -> None:
    bare = damaged_bare(tmp_path, dataset, name, how)
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        open_structures(bare, timeout=8)
    assert time.monotonic() - start < 20
    assert str(bare) in one_line(caught)


def test_text_in_a_bp_directory(tmp_path: Path) -> None:
    path = tmp_path / "text.bp"
    path.mkdir()
    for name in ("data.0", "md.0", "md.idx", "mmd.0"):
        (path / name).write_text("hello " * 100)
    with pytest.raises(DataError):
        open_structures(path, timeout=10)
    (path / "md.idx").unlink()
    with pytest.raises(DataError, match="not a complete BP5 directory"):
        open_structures(path, timeout=10)


# -- writers -----------------------------------------------------------------------------------------------------------

WRITER = """
import sys, time
sys.path.insert(0, {samples!r})
from tests.structures.structure_samples import random_batch
from atomsieve.structures import StructureWriter
with StructureWriter({path!r}, step_size=50) as writer:
    for k in range(10_000):
        writer.append(random_batch(50, k, fields=set()))
        print("step", k, flush=True)
"""


@pytest.fixture
def running_writer(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    path = tmp_path / "x.bp"
    program = WRITER.format(path=str(path), samples=str(Path(__file__).parents[2]))
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("step 3"):
            break
    yield path, child
    child.kill()
    child.wait()


def test_killed_writer_leaves_nothing_that_looks_whole(running_writer: tuple[Path, subprocess.Popen[str]]) -> None:
    path, child = running_writer
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not path.exists()
    partial = path.with_name("x.bp.partial")
    assert partial.is_dir()
    with pytest.raises(DataError, match="unfinished"):
        open_structures(path)
    with pytest.raises(DataError):
        open_structures(partial)
    batch = random_batch(7)
    write_structures(path, batch, SOURCE)
    assert_equal(open_structures(path).read(0, 7), batch)
    assert [p.name for p in path.parent.iterdir()] == ["x.bp"]


def test_two_writers(running_writer: tuple[Path, subprocess.Popen[str]]) -> None:
    path, child = running_writer
    with pytest.raises(AtomSieveError, match=f"is in use by another run .*process {child.pid}"):
        write_structures(path, random_batch(3), SOURCE)
    child.send_signal(signal.SIGINT)
    child.wait()
    assert list(path.parent.iterdir()) == [], "an interrupted writer cleans up"


def test_overwrite_deletes_only_what_is_ours(tmp_path: Path, dataset: Path) -> None:
    with pytest.raises(UsageError, match="--overwrite"):
        write_structures(dataset, random_batch(3), SOURCE)
    before = open_structures(dataset).identity()
    with pytest.raises(ZeroDivisionError), StructureWriter(dataset, sources=SOURCE, overwrite=True) as writer:
        writer.append(random_batch(1 // 0))
    assert open_structures(dataset).identity() == before, "a failed replacement leaves the old dataset"
    write_structures(dataset, random_batch(3), SOURCE, overwrite=True)
    assert len(open_structures(dataset)) == 3
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.tex").write_text("x")
    for target in (precious, precious / "thesis.tex"):
        with pytest.raises(UsageError, match="does not delete it"):
            write_structures(target, random_batch(3), SOURCE, overwrite=True)
    assert (precious / "thesis.tex").read_text() == "x"
    aside = tmp_path / "y.bp.partial"
    aside.mkdir()
    (aside / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match=r"thesis\.tex"):
        write_structures(tmp_path / "y.bp", random_batch(3), SOURCE)
    assert (aside / "thesis.tex").exists()


def test_lock_of_another_machine_is_respected(tmp_path: Path) -> None:
    lock = tmp_path / "x.bp.lock"
    lock.write_text(json.dumps({"host": "far", "boot": "other", "pid": 1, "started": "1", "since": "then"}))
    with pytest.raises(AtomSieveError, match=r"host far.*wait for it"):
        write_structures(tmp_path / "x.bp", random_batch(3), SOURCE)
    assert lock.exists()


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AtomSieveError, match="cannot make"):
        write_structures(tmp_path / "file" / "x.bp", random_batch(3), SOURCE)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("needs root to mount a small tmpfs")
    command = [mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def times(batch: StructureBatch, n: int) -> StructureBatch:
    return StructureBatch.concatenate([batch] * n)


def test_disk_full(small_disk: Path) -> None:
    batch = random_batch(2000, largest=30)
    with pytest.raises(DataError, match=r"no space left .* MB free") as caught:
        write_structures(small_disk / "x.bp", times(batch, 20), SOURCE, step_size=2000)
    one_line(caught)
    assert list(small_disk.iterdir()) == []
    write_structures(small_disk / "x.bp", batch.slice(0, 100), SOURCE)
    read_all(small_disk / "x.bp")


def test_disk_full_behind_our_back(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process fills the disk between the check and the write: still one line, and no crash."""
    monkeypatch.setattr(PartWriter, "_check_space", lambda *_: None)
    with pytest.raises(DataError, match=r"cannot write .*No space left") as caught:
        write_structures(small_disk / "x.bp", times(random_batch(2000, largest=30), 20), SOURCE)
    one_line(caught)
    assert list(small_disk.iterdir()) == []


def test_manifest_survives_a_crash_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DataError, match="Input/output error"):
        write_structures(tmp_path / "x.bp", random_batch(3), SOURCE)
    assert list(tmp_path.iterdir()) == []
