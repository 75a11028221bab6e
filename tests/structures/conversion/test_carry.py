"""Values that files state of structures travel beside them, in any number of processes, through every dataset."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from atomsieve.errors import DataError, UsageError
from atomsieve.structures import carried as carried_module
from atomsieve.structures import open_structures
from atomsieve.structures.carried import CarriedColumn, hash_texts
from atomsieve.structures.conversion import plan
from atomsieve.structures.conversion.carry import name_column, parse_carry
from atomsieve.structures.conversion.convert import ConvertOptions, Input, convert
from atomsieve.structures.conversion.options import ConvertOptions as Options
from atomsieve.structures.labels import LabelKeys

arrow = pytest.importorskip("pyarrow")


def frame(k: int, info: str) -> str:
    return f'2\nProperties=species:S:1:pos:R:3 {info} pbc="F F F"\nH 0 0 0\nO 0 0 {1 + k / 7}\n'


def write(path: Path, infos: list[str]) -> Path:
    path.write_text("".join(frame(k, info) for k, info in enumerate(infos)))
    return path


def run(source: Path, out: Path, carry: str | None = None, **options: object):
    keys = options.pop("keys", LabelKeys(none=True))
    return convert([Input(source)], out, Options(keys=keys, carry=parse_carry(carry), **options))


def column(path: Path, name: str) -> list:
    with open_structures(path) as reader:
        return reader.read_carried_at(np.arange(len(reader)), name).tolist()


def notes(report) -> str:
    return "\n".join(report.tally.carried.list_notes(report.written))


INFOS = [f'mp_id=mp-{k} gap={k / 8} n={k} good={"T" if k % 2 else "F"} "spg sym"="F d-3m {k % 3}"' for k in range(50)]


def test_every_kind_comes_back_whatever_the_step(tmp_path, monkeypatch):
    monkeypatch.setattr(carried_module, "ROWS", 16)
    source = write(tmp_path / "x.extxyz", INFOS)
    report = run(source, tmp_path / "o.bp", "all", step_size=7)
    assert notes(report).startswith("carried: id (from mp_id), gap, n, good, spg_sym (from spg sym)")
    expected = {
        "id": [f"mp-{k}" for k in range(50)],
        "gap": [k / 8 for k in range(50)],
        "n": list(range(50)),
        "good": [k % 2 == 1 for k in range(50)],
        "spg_sym": [f"F d-3m {k % 3}" for k in range(50)],
    }
    with open_structures(tmp_path / "o.bp") as reader:
        kinds = {c.name: c.kind for c in reader.carried}
        assert kinds == {"id": "text", "gap": "float", "n": "int", "good": "flag", "spg_sym": "text"}
        for name, values in expected.items():
            assert reader.read_carried_at(np.arange(50), name).tolist() == values
            some = np.array([3, 15, 16, 17, 49])
            assert reader.read_carried_at(some, name).tolist() == [values[k] for k in some]
            assert reader.read_carried(5, 37).column(name).to_pylist() == values[5:37]
        assert reader.read(0, 50).id.tolist() == list(range(50))
    run(tmp_path / "o.bp", tmp_path / "again.bp")  # a dataset carries on what it carries
    for name, values in expected.items():
        assert column(tmp_path / "again.bp", name) == values
    run(tmp_path / "o.bp", tmp_path / "less.bp", "gap")
    with open_structures(tmp_path / "less.bp") as reader:
        assert [c.name for c in reader.carried] == ["id", "gap"]


def test_the_structures_have_one_identity_whatever_they_carry(tmp_path):
    source = write(tmp_path / "x.extxyz", INFOS)
    found = set()
    for carry in (None, "all", "none", "gap,n"):
        run(source, tmp_path / f"{carry}.bp", carry)
        with open_structures(tmp_path / f"{carry}.bp") as reader:
            found.add(reader.identity())
    assert len(found) == 1
    manifest = json.loads((tmp_path / "none.bp" / "manifest.json").read_text())
    assert manifest["schema_version"] == 1
    assert "carried" not in manifest["parts"][0]


def test_pieces_and_processes_give_the_same_bytes(tmp_path, monkeypatch):
    source = write(tmp_path / "x.extxyz", [*INFOS, *INFOS[:20], 'mp_id=late note="only here"'])
    monkeypatch.setattr(plan, "SMALLEST", 700)
    monkeypatch.setattr(plan, "LARGEST", 1500)
    run(source, tmp_path / "one.bp", "all")
    convert([Input(source)], tmp_path / "two.bp", Options(keys=LabelKeys(none=True), carry=("all",)), workers=2)
    files = sorted(p.relative_to(tmp_path / "one.bp") for p in (tmp_path / "one.bp").rglob("*") if p.is_file())
    assert sum(p.name == "carried.arrow" for p in files) > 1
    for path in files:
        assert (tmp_path / "one.bp" / path).read_bytes() == (tmp_path / "two.bp" / path).read_bytes()
    assert column(tmp_path / "one.bp", "note")[-2:] == ["", "only here"]


def test_text_ids_without_being_asked(tmp_path):
    for key, name in (("material_id", "MaterialId"), ("sid", "sid"), ("name", "name")):
        report = run(write(tmp_path / "x.extxyz", [f"{name}=a-{k}" for k in range(3)]), tmp_path / f"{key}.bp")
        assert column(tmp_path / f"{key}.bp", "id") == ["a-0", "a-1", "a-2"]
        assert f"carried: id (from {name})" in notes(report)
    report = run(write(tmp_path / "x.extxyz", ["sid=7", "sid=8"]), tmp_path / "numbers.bp")
    with open_structures(tmp_path / "numbers.bp") as reader:  # integers are what --id-key takes
        assert not reader.carried


def test_ids_that_repeat_or_are_empty_or_long(tmp_path):
    long = "m" * 10_000
    source = write(tmp_path / "x.extxyz", ["mid=a", "mid=a", 'mid=""', "n=3", f"mid={long}"])
    with pytest.raises(DataError, match=r"1 structure with the text id of an earlier one \(such as 'a'\) under 'mid'"):
        run(source, tmp_path / "o.bp", keys=LabelKeys(none=True, id="mid"))
    keys = LabelKeys(none=True, id="mid")
    report = run(source, tmp_path / "o.bp", keys=keys, allow_duplicate_ids=True)
    assert column(tmp_path / "o.bp", "id") == ["a", "a", "", "", long]
    assert "2 structures of 5 without a text id: theirs is empty" in notes(report)
    assert "1 structure with the text id of an earlier one" in report.remarks[0]
    source = write(tmp_path / "x.extxyz", ["sid=a", "sid=a"])
    assert "tell them apart" in run(source, tmp_path / "twice.bp").remarks[0]
    source = write(tmp_path / "x.extxyz", ["sid=a", f"sid={'m' * 70_000}"])
    with pytest.raises(DataError, match=r"frame 1: the text of 'sid' has 70,000 bytes, at most 65,536 are carried"):
        run(source, tmp_path / "long.bp")


def test_values_of_mixed_types_are_text_and_said(tmp_path):
    source = write(tmp_path / "x.extxyz", ["v=1", "v=2.5", "v=abc", "v=T", "w=4 v=7"])
    report = run(source, tmp_path / "o.bp", "v,w")
    assert column(tmp_path / "o.bp", "v") == ["1", "2.5", "abc", "True", "7"]
    assert np.isnan(column(tmp_path / "o.bp", "w")[0]) and column(tmp_path / "o.bp", "w")[4] == 4
    assert "carried column v has values of mixed types (3 number, 1 text, 1 flag)" in notes(report)


def test_kinds_that_change_from_step_to_step(tmp_path):
    """The kind of a column is known when its part ends: what comes later opens another part."""
    (tmp_path / "in").mkdir()
    for k, info in enumerate(["v=1", "v=2.5 w=a", "v=x", "v=4"]):
        write(tmp_path / "in" / f"{k}.extxyz", [info])
    run(tmp_path / "in", tmp_path / "o.bp", "all", step_size=1)
    assert column(tmp_path / "o.bp", "v") == ["1", "2.5", "x", "4"]
    assert column(tmp_path / "o.bp", "w") == ["", "a", "", ""]
    with open_structures(tmp_path / "o.bp") as reader:
        assert reader.carried == (CarriedColumn("v", "text"), CarriedColumn("w", "text"))


def test_refused_with_a_reason(tmp_path):
    source = write(tmp_path / "x.extxyz", ['a-b=1 a_b=2 list="1 2 3"', 'a-b=1 list="1 2 3"'])
    with pytest.raises(UsageError, match=r"'spacegrp' is in no structure.*the keys there: a-b, a_b, list"):
        run(source, tmp_path / "o.bp", "spacegrp")
    with pytest.raises(UsageError, match="'a-b' and 'a_b' would both be the column 'a_b'"):
        run(source, tmp_path / "o.bp", "a-b,a_b")
    report = run(source, tmp_path / "o.bp", "list")
    assert column(tmp_path / "o.bp", "list") == ["[1, 2, 3]", "[1, 2, 3]"]
    for text, message in (("a,,b", "has an empty name"), ("a,a", "names a key twice"), ("all,a", "stand alone")):
        with pytest.raises(UsageError, match=message):
            parse_carry(text)
    assert report.written == 2
    many = write(tmp_path / "y.extxyz", [" ".join(f"k{k}=1" for k in range(300))])
    with pytest.raises(DataError, match="300 columns would be carried, at most 200"):
        run(many, tmp_path / "many.bp", "all")


def test_a_damaged_or_lost_file_is_told(tmp_path):
    run(write(tmp_path / "x.extxyz", INFOS), tmp_path / "o.bp", "all")
    path = next((tmp_path / "o.bp").rglob("carried.arrow"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with open_structures(tmp_path / "o.bp") as reader:
        assert len(reader.read(0, 50)) == 50
        with pytest.raises(DataError, match=r"carried\.arrow is damaged"):
            reader.read_carried(0, 1)
    path.unlink()
    with pytest.raises(DataError, match=r"carried\.arrow is missing"):
        open_structures(tmp_path / "o.bp")


def test_names_and_hashes():
    assert [name_column(key) for key in ("mp-id", "2d", "class", "spg sym", "é")] == [
        "mp_id",
        "_2d",
        "class_",
        "spg_sym",
        "_",
    ]
    texts = [f"m-{k}" for k in range(3000)] + ["", "m-7", "7-m", "äö"]
    hashes = hash_texts(arrow.array(texts))
    assert len(set(hashes.tolist())) == len(set(texts))
    assert hashes[7] == hashes[3001]
    assert hash_texts(arrow.array(texts)[7:12]).tolist() == hashes[7:12].tolist()
    assert ConvertOptions is Options
