"""Copies of a model share the cores that they may use."""

from __future__ import annotations

import json
import os

import pytest

from atomsieve.serve.model import cpu_quota
from atomsieve.serve.model.cpu_quota import choose_threads, count_instances, count_usable_cores


@pytest.mark.parametrize(
    ("asked", "variable", "instances", "expected"),
    [
        (3, "5", 2, 3),
        (None, "5", 2, 5),
        (None, "5,2", 2, 5),
        (None, None, 1, 12),
        (None, None, 5, 2),
        (None, "", 4, 3),
        (None, "many", 4, 3),
        (None, "0", 4, 3),
        (None, None, 40, 1),
    ],
)
def test_threads_of_a_copy(monkeypatch, asked, variable, instances, expected):
    monkeypatch.setattr(cpu_quota, "count_usable_cores", lambda: 12)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert choose_threads(asked, instances) == expected


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        ({}, "", 16),
        ({"cpu.max": "max 100000\n"}, "0::/\n", 16),
        ({"cpu.max": "250000 100000\n"}, "0::/\n", 3),
        ({"cpu.max": "10000 100000\n"}, "0::/\n", 1),
        ({"a/cpu.max": "400000 100000\n", "a/b/cpu.max": "max 100000\n"}, "0::/a/b\n", 4),
        ({"a/cpu.max": "400000 100000\n"}, "0::/b\n", 16),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "2:cpu,cpuacct:/\n", 16),
        ({"cpu/d/cpu.cfs_quota_us": "200000\n", "cpu/d/cpu.cfs_period_us": "100000\n"}, "2:cpu,cpuacct:/d\n", 2),
        ({"cpu.max": "6400000 100000\n"}, "0::/\n", 16),
        ({"cpu.max": "nonsense"}, "nonsense", 16),
        ({"cpu.max": "100 0\n"}, "0::/\n", 16),
    ],
)
def test_cores_by_affinity_and_quota(monkeypatch, tmp_path, files, own, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    for name, text in files.items():
        place = tmp_path / "groups" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    (tmp_path / "own").write_text(own)
    assert count_usable_cores(tmp_path / "groups", tmp_path / "own") == expected


@pytest.mark.parametrize(
    ("groups", "expected"),
    [([], 1), ([{"count": 3}], 3), ([{"count": 2, "gpus": [0, 1]}, {"count": 1}], 5), (None, 1)],
)
def test_copies_by_the_configuration(groups, expected):
    assert count_instances({"model_config": json.dumps({"instance_group": groups})}) == expected
    assert count_instances({}) == 1
