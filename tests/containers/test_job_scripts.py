"""Scripts: their syntax, and what the jobs do, with the scheduler and its launcher played by small scripts."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import time

import pytest

from tests.containers.test_images import FOLDER, tool

SCRIPTS = sorted([*FOLDER.rglob("*.sh"), *FOLDER.glob("jobs/*/*.*")])
SLURM, PBS = FOLDER / "jobs/slurm", FOLDER / "jobs/pbs"
RUN = """#!/bin/bash
echo "{name} $*" >> "$CALLS"
while [[ $1 == -* ]]; do
    case $1 in
        -n | -hostfile | --bind | --env) shift 2 ;;
        *) shift ;;
    esac
done
[[ {name} != apptainer ]] || shift
exec "$@"
"""
NOTE = """#!/bin/bash
echo "{name} $*" >> "$CALLS"
exit "${{CODE_{variable}:-0}}"
"""


@pytest.fixture
def site(tmp_path):
    """A folder with a scheduler's programs that write down how they were called; returns how to run a job there."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("srun", "mpirun", "apptainer"):
        (programs / name).write_text(RUN.format(name=name))
    for name in ("scontrol", "qsub", "screen", "atomsieve"):
        (programs / name).write_text(NOTE.format(name=name, variable=name.upper()))
    for path in programs.iterdir():
        path.chmod(0o755)
    (tmp_path / "nodes").write_text("a\na\nb\nb\n")

    def environment(**variables):
        known = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "PBS", "PMI", "OMPI"))}
        return known | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "CALLS": str(tmp_path / "calls"),
            "SLURM_JOB_ID": "7",
            "SLURM_CPUS_PER_TASK": "1",
            "PBS_JOBID": "7.head",
            "PBS_O_WORKDIR": str(tmp_path),
            "PBS_NODEFILE": str(tmp_path / "nodes"),
            "PAUSE": "0",
            **variables,
        }

    def job(script, **variables):
        (tmp_path / "calls").unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", script],
            cwd=tmp_path,
            env=environment(**variables),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").is_file() else []
        return done, calls

    job.environment, job.folder, job.programs = environment, tmp_path, programs
    return job


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: str(p.relative_to(FOLDER)))
def test_a_script_is_sound(path):
    subprocess.run(["bash", "-n", path], check=True)
    text = path.read_text()
    if path.name != "lib.sh":
        assert text.startswith("#!/usr/bin/env bash\n# ")
        assert "\nset -euo pipefail\n" in text
    subprocess.run([tool("shellcheck"), "--external-sources", "--source-path=SCRIPTDIR", path], check=True)


def test_jobs_of_both_schedulers_take_the_same_variables():
    for path in SLURM.iterdir():
        described = [
            set(re.findall(r"^# ([A-Z_, ]+?)  ", p.read_text(), re.MULTILINE)) for p in (path, PBS / f"{path.stem}.pbs")
        ]
        slurm, pbs = ({name for group in found for name in group.split(", ")} for found in described)
        assert slurm - {"MPI_TYPE"} == pbs - {"LIMIT", "SCRIPT"}, path.stem
    for path in SCRIPTS:
        first = re.findall(r"^#(SBATCH|PBS) ", path.read_text(), re.MULTILINE)
        assert set(first) == ({"SBATCH"} if path.suffix == ".sbatch" else {"PBS"} if path.suffix == ".pbs" else set())
        body = path.read_text().partition("set -euo pipefail")[2]
        assert not re.search(r"^#(SBATCH|PBS)", body, re.MULTILINE), "a scheduler stops reading at the first command"


SCREEN = {"CANDIDATES": "c.bp", "ENSEMBLE": "gfm"}


@pytest.mark.parametrize(("code", "ends", "requeued"), [(0, 0, 0), (75, 75, 1), (3, 0, 0), (1, 1, 0)])
def test_a_slurm_job_is_requeued_only_when_it_was_interrupted(site, code, ends, requeued):
    done, calls = site(SLURM / "screen.sbatch", **SCREEN, CODE_SCREEN=str(code))
    assert done.returncode == ends, done.stderr
    assert calls[0].startswith("srun --mpi=pmi2 ")
    assert calls[1] == "screen run c.bp --ensemble gfm --out results --device cpu --quiet"
    assert calls[2:] == ["scontrol requeue 7"] * requeued


def test_a_job_that_is_interrupted_again_and_again_ends(site):
    _, calls = site(SLURM / "screen.sbatch", **SCREEN, CODE_SCREEN="75", SLURM_RESTART_COUNT="50")
    assert len(calls) == 2
    _, calls = site(PBS / "screen.pbs", **SCREEN, CODE_SCREEN="75", RESUBMITTED="50")
    assert len(calls) == 2


@pytest.mark.parametrize(("code", "ends", "again"), [(0, 0, 0), (75, 75, 1), (3, 0, 0), (1, 1, 0)])
def test_a_pbs_job_is_submitted_again_only_when_it_was_interrupted(site, code, ends, again):
    done, calls = site(PBS / "screen.pbs", **SCREEN, CODE_SCREEN=str(code))
    assert done.returncode == ends, done.stderr
    assert calls[0].startswith("mpirun -n 4 -hostfile ")
    assert calls[1] == "screen run c.bp --ensemble gfm --out results --device cpu --quiet"
    assert len(calls) == 2 + again
    if again:
        variables = dict(pair.split("=", 1) for pair in calls[2].split()[2].split(","))
        assert variables == {
            "CANDIDATES": "c.bp",
            "ENSEMBLE": "gfm",
            "RESULTS": "results",
            "IMAGE": "",
            "MPI_ROOT": "",
            "MPI_LIBRARY": "",
            "LIMIT": "14100",
            "RESUBMITTED": "1",
        }
        _, second = site(PBS / "screen.pbs", **variables, CODE_SCREEN="75")
        assert "RESUBMITTED=2" in second[2]


def test_a_pbs_job_asks_its_ranks_to_stop_in_time(site):
    (site.programs / "screen").write_text(
        "#!/bin/bash\ntrap 'exit 75' TERM\nfor ((k = 0; k < 600; k++)); do sleep 0.05; done\nexit 9\n"
    )
    done, calls = site(PBS / "screen.pbs", **SCREEN, LIMIT="0.2")
    assert done.returncode == 75
    assert calls[-1].startswith("qsub ")


@pytest.mark.parametrize("folder", [SLURM, PBS], ids=["slurm", "pbs"])
def test_a_job_in_an_image_binds_the_sites_mpi(site, folder):
    [script] = folder.glob("screen.*")
    _, calls = site(script, **SCREEN, IMAGE="a.sif", MPI_ROOT="/opt/mpi")
    [line] = [line for line in calls if line.startswith("apptainer")]
    assert "--bind /opt/mpi " in line
    assert "--env MPI4PY_LIBMPI=/opt/mpi/lib/libmpi.so " in line
    assert line.endswith("a.sif screen run c.bp --ensemble gfm --out results --device cpu --quiet")
    [script] = folder.glob("train.*")
    _, calls = site(script, CONFIG="train.yaml", IMAGE="a.sif")
    [line] = [line for line in calls if line.startswith("apptainer")]
    assert "--nv" in line.split()
    assert line.endswith("a.sif atomsieve train run train.yaml --quiet")


@pytest.mark.parametrize("folder", [SLURM, PBS], ids=["slurm", "pbs"])
def test_what_is_missing_is_said(site, folder):
    for name in ("train", "screen", "screen_remote", "serve"):
        [script] = folder.glob(f"{name}.*")
        done, calls = site(script)
        assert done.returncode != 0
        assert re.search(r"name (the|what)", done.stderr), done.stderr
        assert not calls


@pytest.mark.parametrize("folder", [SLURM, PBS], ids=["slurm", "pbs"])
def test_a_server_job_tells_where_it_is_and_drains_when_it_is_stopped(site, folder):
    # A server that needs two checks to be well, and drains for a moment when it is asked to end.
    (site.programs / "atomsieve").write_text(
        """#!/bin/bash
echo "atomsieve $*" >> "$CALLS"
if [[ $2 == check ]]; then
    echo x >> "$CALLS.checks"
    [[ $(wc -l < "$CALLS.checks") -ge 2 ]]
    exit
fi
trap 'sleep 0.3; echo drained >> "$CALLS"; exit 0' TERM
for ((k = 0; k < 1200; k++)); do sleep 0.05; done
"""
    )
    (site.programs / "sleep").write_text('#!/bin/bash\n[[ $1 == 5 ]] || exec /bin/sleep "$@"\n')
    (site.programs / "sleep").chmod(0o755)
    [script] = folder.glob("serve.*")
    process = subprocess.Popen(["bash", script], cwd=site.folder, env=site.environment(ENSEMBLE="gfm"))
    endpoint = site.folder / "endpoint"
    try:
        deadline = time.monotonic() + 30
        while not (endpoint / "url.7").is_file() and time.monotonic() < deadline:
            time.sleep(0.05)
        url = (endpoint / "url.7").read_text().strip()
        assert re.fullmatch(r"grpc://[\w.-]+:20007", url)
        assert stat.S_IMODE((endpoint / "token").stat().st_mode) == 0o600
        assert stat.S_IMODE(endpoint.stat().st_mode) == 0o700
        token = (endpoint / "token").read_text()
        assert re.fullmatch(r"[0-9a-f]{64}", token)
        [client] = folder.glob("screen_remote.*")
        _, calls = site(client, CANDIDATES="c.bp")
        assert f"screen run c.bp --endpoint {url} --token-file endpoint/token --out results --quiet" in calls
        (endpoint / "url.8").write_text("grpc://other:1\n")
        _, calls = site(client, CANDIDATES="c.bp", SERVERS="2")
        assert any(f"--endpoint {url},grpc://other:1 " in line for line in calls)
        process.send_signal(signal.SIGTERM)
        assert process.wait(240) == 0
    finally:
        process.kill()
        process.wait()
    assert (site.folder / "calls").read_text().endswith("drained\n")
    assert not (endpoint / "url.7").exists()
    assert (endpoint / "token").read_text() == token, "kept for the next server"


@pytest.mark.parametrize("folder", [SLURM, PBS], ids=["slurm", "pbs"])
def test_a_server_that_does_not_start_ends_its_job(site, folder):
    (site.programs / "atomsieve").write_text("#!/bin/bash\n[[ $2 == start ]] && exit 4\n/bin/sleep 0.2\nexit 1\n")
    [script] = folder.glob("serve.*")
    done, _ = site(script, ENSEMBLE="gfm")
    assert done.returncode == 1
    assert not list((site.folder / "endpoint").glob("url.*"))
