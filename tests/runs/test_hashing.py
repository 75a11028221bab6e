"""Checksums are those of the standard library, in pieces or in one."""

from __future__ import annotations

import hashlib
import json
import os
import zlib

from atomsieve.runs import hashing


def test_checksums_of_files(tmp_path, monkeypatch):
    monkeypatch.setattr(hashing, "BLOCK", 7)
    data, path = os.urandom(100), tmp_path / "data"
    path.write_bytes(data)
    assert hashing.hash_file(path) == hashlib.sha256(data).hexdigest()
    assert hashing.compute_file_crc(path, 3, 91) == zlib.crc32(data[3:91])
    assert hashing.compute_file_crc(path, 90, 1000) == zlib.crc32(data[90:]), "bytes beyond the end do not count"
    assert hashing.compute_file_crc(path, 5, 5) == 0


def test_plain_data_has_one_name_whatever_the_order_of_its_keys():
    one, other = {"a": 1, "b": [1.5, None]}, {"b": [1.5, None], "a": 1}
    assert hashing.hash_json(one) == hashing.hash_json(other)
    assert hashing.hash_json(one) == hashlib.sha256(b'{"a":1,"b":[1.5,null]}').hexdigest()
    assert hashing.hash_json(one) != hashing.hash_json(json.loads('{"a": 2, "b": [1.5, null]}'))
