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

HERE, BIN = Path(__file__).parent, Path(sys.executable).parent
LAUNCHERS = {
    "alone": [sys.executable],
    "mpirun": [str(BIN / "mpirun"), "-n", "2", sys.executable],
    "torchrun": [str(BIN / "torchrun"), "--nproc-per-node", "2"],
}

pytestmark = [pytest.mark.mpi, pytest.mark.slow]


def launch(launcher: str, *arguments: str | Path, check: bool = True, **more: str) -> subprocess.CompletedProcess:
    command = [*LAUNCHERS[launcher], *map(str, arguments)]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), **more}
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=env, check=False)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


SHALLOW = {"ensemble": {"kind": "shallow", "members": 3}, "loss": {"likelihood_from": 0.0, "force_decoders": 2}}


@pytest.mark.parametrize(
    ("atoms", "sections"),
    [
        # a whole run on two ranks is compared with one on one rank below
        pytest.param(40, {}, marks=pytest.mark.nightly),
        pytest.param(1, {}, marks=pytest.mark.nightly),
        pytest.param(40, SHALLOW, marks=pytest.mark.nightly),
        (1, SHALLOW),
    ],
)
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


def test_a_launcher_of_another_mpi_is_refused(monkeypatch):
    """Each of its processes would do the whole work and write the same files."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(AtomSieveError, match="launcher and library are of different MPIs"):
        distributed.join_process_group("cpu")


def test_ranks_of_srun_that_do_not_see_each_other_write_nothing(small, tmp_path):
    """Tasks of `srun`, without MPI or of a PMIx that the library cannot reach: each would take itself for alone."""
    config = small(budget={"steps": 2})
    (tmp_path / "c.yaml").write_text(dump_config(config))
    for rank in ("0", "1"):
        step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": rank}
        done = launch("alone", "-m", "atomsieve", "train", tmp_path / "c.yaml", check=False, **step)
        assert done.returncode == 1
        assert ("a launcher (srun) started 2 processes" in done.stderr) == (rank == "0"), done.stderr
        if rank == "1":
            continue
        pmix = {**step, "PMIX_RANK": rank, "PMIX_NAMESPACE": "slurm.pmix.7.0"}
        done = launch("alone", "-m", "atomsieve", "train", tmp_path / "c.yaml", check=False, **pmix)
        assert done.returncode != 0  # MPICH itself may end the process: it asks for PMIx where PMIX_RANK is set
    assert not config.output.exists()


def test_torch_that_cannot_connect_is_an_error_of_one_line(monkeypatch):
    torchrun = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "no number"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(AtomSieveError, match="rank 0 of 2 cannot connect to the others"):
        distributed.join_process_group("cpu")
