"""Two ranks, by mpirun and by torchrun, do what one does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from atomsieve.errors import AtomSieveError
from atomsieve.gfm.folder import load_gfm
from atomsieve.gfm.manifest import DOMAIN
from atomsieve.train import distributed
from atomsieve.train.config import dump_config
from atomsieve.train.distributed import launched_by

HERE, BIN = Path(__file__).parent, Path(sys.executable).parent
LAUNCHERS = {
    "alone": [sys.executable],
    "mpirun": [str(BIN / "mpirun"), "-n", "2", sys.executable],
    "torchrun": [str(BIN / "torchrun"), "--nproc-per-node", "2"],
}

pytestmark = [pytest.mark.mpi, pytest.mark.slow]


def launch(launcher: str, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess:
    command = [*LAUNCHERS[launcher], *map(str, arguments)]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=env, check=False)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


SHALLOW = {"ensemble": {"kind": "shallow", "members": 3}, "loss": {"likelihood_from": 0.0, "force_decoders": 2}}


@pytest.mark.parametrize(("atoms", "sections"), [(40, {}), (1, {}), (40, SHALLOW), (1, SHALLOW)])
def test_the_gradient_of_two_ranks_is_that_of_one(small, tmp_path, atoms, sections):
    """With one atom per batch a rank has nothing to do, and must still take part."""
    config = small(precision="fp64", batch={"atoms": atoms}, **sections)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    found = {}
    for launcher in LAUNCHERS:
        out = tmp_path / f"{launcher}.safetensors"
        launch(launcher, HERE / "rank_gradient.py", tmp_path / "c.yaml", tmp_path / "none", out)
        found[launcher] = load_file(str(out))
    assert [int(f.pop("ranks")) for f in found.values()] == [1, 2, 2]
    for launcher in ("mpirun", "torchrun"):
        for name, reference in found["alone"].items():
            scale = max(float(reference.abs().max()), 1e-3)
            assert float((found[launcher][name] - reference).abs().max()) < 1e-10 * scale, (launcher, name)
    assert float(found["alone"]["loss"].abs().max()) > 0


@pytest.mark.parametrize("mode", ["together", "spread"])
def test_a_run_on_two_ranks_is_whole(small, tmp_path, mode):
    config = small(precision="fp64", ensemble={"members": 2, "mode": mode}, budget={"steps": 6})
    (tmp_path / "c.yaml").write_text(dump_config(config))
    launch("mpirun", "-m", "atomsieve", "train", tmp_path / "c.yaml")
    ensemble, manifest = load_gfm(config.output / "gfm")
    assert len(manifest.members) == 2
    assert DOMAIN in manifest.files
    assert (config.output / "metrics.md").is_file()
    if mode == "together":
        alone = small("alone", precision="fp64", ensemble={"members": 2}, budget={"steps": 6})
        (tmp_path / "a.yaml").write_text(dump_config(alone))
        launch("alone", "-m", "atomsieve", "train", tmp_path / "a.yaml")
        reference, _ = load_gfm(alone.output / "gfm")
        for p, q in zip(ensemble.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def test_more_ranks_than_members_are_refused_on_every_rank(small, tmp_path):
    config = small(ensemble={"members": 1, "mode": "spread"})
    (tmp_path / "c.yaml").write_text(dump_config(config))
    done = launch("mpirun", "-m", "atomsieve", "train", tmp_path / "c.yaml", check=False)
    assert done.returncode == 2
    assert "deals 1 members to 2 ranks" in done.stderr


def test_the_launcher_is_recognised():
    assert launched_by({}) == "alone"
    assert launched_by({"PMI_SIZE": "1"}) == "alone"
    assert launched_by({"PMI_SIZE": "2"}) == "mpi"
    torchrun = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert launched_by(torchrun) == "torchrun"


def test_a_launcher_of_another_mpi_is_refused(monkeypatch):
    """Each of its processes would do the whole work and write the same files."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(AtomSieveError, match="mpirun belongs to another MPI"):
        distributed.join_process_group("cpu")
