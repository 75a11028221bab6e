"""Servers die, come back, hang, change or ask for another token while clients use them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from atomsieve.errors import AtomSieveError, UsageError
from atomsieve.followup.label_candidates import pick
from atomsieve.predict import Predictor
from atomsieve.remote.async_predictor import AsyncRemotePredictor
from atomsieve.remote.credentials import Credentials
from atomsieve.remote.predictor import RemotePredictor
from atomsieve.remote.transport import Denied, Unavailable
from atomsieve.screen.engine.servers import RemoteOptions
from atomsieve.screen.options import ScreenOptions
from atomsieve.screen.results.record import open_results
from atomsieve.screen.run import run_screen
from atomsieve.serve.model.settings import Settings
from atomsieve.serve.repository.layout import RepositoryModel
from atomsieve.structures import StructureBatch, write_structures
from tests.helpers import copper_oxides, tiny_gfm
from tests.serve.repositories import write_model
from tests.serve.spoiled import proxy
from tests.serve.triton import RunningServer, installation

TOKEN = "0123456789abcdef-the-token-of-these-tests"
SHOWN = Credentials(token=TOKEN)
MPIRUN = Path(sys.executable).parent / "mpirun"
HANG = 100  # seconds after which a test that hangs is ended
SOME = 60_000  # bytes of answers, far from all of a screening


@pytest.fixture(scope="module")
def first(repository):
    """A server of its own for these tests, with a token."""
    installation()
    running = RunningServer(repository, token=TOKEN)
    yield running
    running.close()


@pytest.fixture(autouse=True)
def back(first):
    """Start the server again where it did not survive the test before: Triton 2.51 may die of requests given up."""
    if first.process.exit_code is not None:
        first.process.kill()
        first.start()


@pytest.fixture(scope="module")
def second(repository):
    """Another one."""
    running = RunningServer(repository, token=TOKEN)
    yield running
    running.close()


@pytest.fixture(scope="module")
def candidates(tmp_path_factory):
    """1,080 structures in a file, enough for a server to die in the middle."""
    some = copper_oxides(120)
    batch = StructureBatch.concatenate([some] * 9)
    path = tmp_path_factory.mktemp("many") / "many.bp"
    write_structures(path, batch.replace(id=np.arange(len(batch))))
    return path


@pytest.fixture(scope="module")
def token_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("token") / "token"
    path.touch(0o600)
    path.write_text(TOKEN)
    return path


@pytest.fixture(scope="module")
def whole(first, candidates, tmp_path_factory):
    """Results folder of a screening that nothing happened to."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    served = RemoteOptions(first.grpc, credentials=SHOWN)
    run_screen(candidates, None, ScreenOptions(chunk_size=64, forces=True), served=served, out=out)
    return out


@pytest.fixture(scope="module")
def undisturbed(whole):
    return artefacts(whole)


def artefacts(out):
    found = {name: (out / name).read_bytes() for name in ("rows.npy", "forces.npy", "top.csv")}
    run = json.loads((out / "run.json").read_text())
    del run["endpoints"]
    return {**found, "run.json": run}


def screening(endpoint, candidates, token_file, out, *more, before=()):
    line = [
        *before,
        sys.executable,
        "-m",
        "atomsieve",
        "screen",
        "run",
        candidates,
        "--endpoint",
        endpoint,
        "--out",
        out,
        "--chunk-size",
        64,
        "--forces",
        "--token-file",
        token_file,
        *more,
    ]
    return subprocess.Popen(list(map(str, line)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def model_process(server):
    """Return the process id of the server's model."""
    line = ["ps", "--ppid", str(server.process.pid), "-o", "pid=,comm="]
    found = subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()
    return next(int(row.split()[0]) for row in found if "triton_python" in row)


# -- while a screening runs ----------------------------------------------------------------------------------------


def test_the_rows_are_those_of_the_local_run(undisturbed, candidates, served_gfm, tmp_path):
    options = ScreenOptions(chunk_size=64, forces=True, precision="fp64", device="cpu", limit=600)
    run_screen(candidates, served_gfm, options, out=tmp_path / "local")
    (tmp_path / "remote.npy").write_bytes(undisturbed["rows.npy"])
    there, here = np.load(tmp_path / "remote.npy")[:600], np.load(tmp_path / "local" / "rows.npy")
    for name in here.dtype.names:
        if here.dtype[name].kind == "f":
            np.testing.assert_allclose(there[name], here[name], rtol=1e-6, atol=1e-8, err_msg=name)
        else:
            np.testing.assert_array_equal(there[name], here[name], err_msg=name)
    batches = undisturbed["run.json"]["batches"]
    assert batches["server"]["threads"] == 1 and batches["threads"] is None
    assert batches["server"]["atomsieve"] == version("atomsieve")


@pytest.mark.parametrize("way", ["grpc", "http"])
def test_a_server_killed_in_the_middle_loses_and_doubles_nothing(
    first, candidates, token_file, undisturbed, tmp_path, request, way
):
    """By gRPC it is the only one; by HTTP there is another one, which goes on."""
    with proxy(getattr(first.options, way)) as between:
        between.hold = SOME  # so that the run cannot be over before the server is killed
        endpoints = f"{way}://{between.address}"
        if way == "http":
            endpoints += f",{request.getfixturevalue('second').grpc}"
        run = screening(endpoints, candidates, token_file, tmp_path / "out")
        try:
            assert between.held.wait(HANG)
            first.process.kill()
            between.hold = 1 << 60
            first.start()
            out, errors = run.communicate(timeout=HANG)
        finally:
            run.kill()
    assert run.returncode == 0, errors
    assert artefacts(tmp_path / "out") == undisturbed
    events = [json.loads(line) for line in (tmp_path / "out" / "run.log.jsonl").read_text().splitlines()]
    lost = [event for event in events if event["event"] == "server_lost"]
    assert between.address in lost[0]["endpoint"] and f"warning: {way}://{between.address}" in errors
    assert ("; waiting up to 5 min" if way == "grpc" else "; 1 more at work") in errors
    assert errors.count("warning: ") == len(lost)
    if way == "grpc":  # else the run may be over before it is back
        assert [event["event"] for event in events].count("server_back") == len(lost)
    assert "1,080 structures screened, 1,080 of them now" in out


def test_patience_runs_out_and_the_run_is_continued(first, candidates, token_file, undisturbed, tmp_path):
    out = tmp_path / "out"
    with proxy(first.options.grpc) as between:
        between.hold = SOME
        run = screening(f"grpc://{between.address}", candidates, token_file, out, "--patience", 0.5)
        try:
            assert between.held.wait(HANG)
            first.process.kill()
            _, errors = run.communicate(timeout=HANG)
        finally:
            run.kill()
            first.start()
    assert run.returncode == 1, errors
    assert "run the same command again to continue" in errors and "given up after a patience of 0.5 s" in errors
    assert errors.count("error:") == 1 and between.address in errors and "Traceback" not in errors
    again = screening(first.grpc, candidates, token_file, out)
    _, errors = again.communicate(timeout=HANG)
    assert again.returncode == 0, errors
    assert artefacts(out) == undisturbed


@pytest.mark.mpi
@pytest.mark.skipif(not MPIRUN.exists(), reason=f"no {MPIRUN}: pip install mpich")
def test_ranks_share_the_servers(first, candidates, token_file, undisturbed, tmp_path):
    run = screening(first.grpc, candidates, token_file, tmp_path / "out", before=(MPIRUN, "-n", 2))
    _, errors = run.communicate(timeout=HANG)
    assert run.returncode == 0, errors
    assert artefacts(tmp_path / "out") == undisturbed


def test_ctrl_c_ends_a_run_whose_server_hangs(first, candidates, token_file, tmp_path):
    with proxy(first.options.grpc) as between:
        between.hold = SOME
        run = screening(f"grpc://{between.address}", candidates, token_file, tmp_path / "out")
        try:
            assert between.held.wait(HANG)
            run.send_signal(signal.SIGINT)
            _, errors = run.communicate(timeout=HANG)
        finally:
            run.kill()
    assert run.returncode == 75 and "run the same command again" in errors, errors


def test_options_of_the_server_and_other_ensembles_are_refused(first, candidates, token_file, tmp_path):
    for option in (("--precision", "fp32"), ("--threads", 2), ("--backend", "native"), ("--device", "cpu")):
        run = screening(first.grpc, candidates, token_file, tmp_path / "out", *option)
        _, errors = run.communicate(timeout=HANG)
        assert run.returncode == 2 and f"{option[0]} {option[1]} with --endpoint" in errors
    other = tiny_gfm(tmp_path / "other", members=2)
    served = RemoteOptions(first.grpc, credentials=SHOWN)
    with pytest.raises(UsageError, match=r"serves ensemble \w{12}, but .*other is \w{12}"):
        run_screen(candidates, other, ScreenOptions(), served=served, out=tmp_path / "out")
    with pytest.raises(UsageError, match="no ensemble given"):
        run_screen(candidates, None, ScreenOptions(), out=tmp_path / "out")


def test_picking_asks_for_the_folder_and_takes_it(whole, served_gfm):
    with pytest.raises(AtomSieveError, match=r"grpc://.* screened, .*--ensemble"):
        pick(open_results(whole), 3)
    assert len(pick(open_results(whole), 3, ensemble=served_gfm).rows) == 3


# -- tokens, and several endpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["grpc", "http"])
def test_a_wrong_token_is_denied_at_once(first, way):
    for credentials in (None, Credentials(token="wrong-token-0123456789abcdef")):
        with pytest.raises(Denied, match=f"{way}://"):
            RemotePredictor.connect(getattr(first, way), credentials=credentials)
    with RemotePredictor.connect(getattr(first, way), credentials=SHOWN) as remote:
        assert remote.heads == ["organic", "metal"]


def test_asyncio_outlives_a_server_that_dies_and_comes_back(first, second, local):
    batches = [copper_oxides(1 + k % 3, seed=k) for k in range(24)]

    async def all_of(remote):
        for batch, answer in zip(batches, await asyncio.gather(*map(remote, batches)), strict=True):
            np.testing.assert_allclose(answer.energy, local(batch).energy, rtol=1e-9)

    async def main():
        endpoints = f"{first.grpc},{second.grpc}"
        async with await AsyncRemotePredictor.connect(endpoints, credentials=SHOWN, patience=HANG) as remote:
            one, two = remote._pool.endpoints
            calls = asyncio.create_task(all_of(remote))
            while not one.in_flight:
                await asyncio.sleep(0)
            first.process.kill()
            await calls
            await all_of(remote)
            assert (one.up, two.up) == (False, True)
            await asyncio.to_thread(first.start)
            async with asyncio.timeout(HANG):
                while not one.up:
                    await asyncio.sleep(0.05)
            await all_of(remote)
            assert (one.up, two.up, one.in_flight, two.in_flight) == (True, True, 0, 0)

    asyncio.run(main())


def test_of_two_endpoints_one_dies_hangs_and_comes_back_as_another(first, second, local, tmp_path):
    other = None
    try:
        remote = RemotePredictor.connect(f"{first.http},{second.grpc}", credentials=SHOWN, deadline=30, patience=60)
        batches = [copper_oxides(1 + k % 3, seed=k) for k in range(60)]
        answers = [remote.submit(batch) for batch in batches]
        answers[4].result(HANG)
        second.process.kill()
        for batch, answer in zip(batches, answers, strict=True):
            np.testing.assert_allclose(answer.result(HANG).energy, local(batch).energy, rtol=1e-9)
        for batch in batches[:10]:
            np.testing.assert_allclose(remote(batch).energy, local(batch).energy, rtol=1e-9)
        assert [e.up for e in remote._workers.pool.endpoints] == [True, False]
        assert remote._workers.pool.endpoints[1].in_flight == 0

        changed = write_other(tmp_path)
        ports = {name: getattr(second.options, name) for name in ("grpc", "http", "metrics")}
        other = RunningServer(changed, token=TOKEN, **ports)
        end = time.monotonic() + HANG
        while remote._workers.pool.endpoints[1].refused is None:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert "is served in another way than before: ensemble_id" in remote._workers.pool.endpoints[1].refused
        np.testing.assert_allclose(remote(batches[0]).energy, local(batches[0]).energy, rtol=1e-9)
        with pytest.raises(
            UsageError, match=rf"{other.grpc} is not served as {first.grpc} is: ensemble_id \w{{12}}, not"
        ):
            RemotePredictor.connect(f"{first.grpc},{other.grpc}", credentials=SHOWN)

        first.process.kill()  # the only one that was left, asked by HTTP
        waiting = [remote.submit(batch) for batch in batches[:8]]
        first.start()
        for batch, answer in zip(batches, waiting, strict=False):
            np.testing.assert_allclose(answer.result(HANG).energy, local(batch).energy, rtol=1e-9)

        one = RemotePredictor.connect(other.grpc, credentials=SHOWN, deadline=2, patience=HANG)
        truth = Predictor.load(tmp_path / "gfm", precision="fp64")
        os.killpg(other.process.pid, signal.SIGSTOP)
        late = one.submit(batches[1])
        with pytest.raises(TimeoutError):
            late.result(2.5)
        os.killpg(other.process.pid, signal.SIGCONT)
        np.testing.assert_allclose(late.result(HANG).energy, truth(batches[1]).energy, rtol=1e-9)
        one.close()
        remote.close()
    finally:
        if other is not None:
            other.close()


def write_other(tmp_path):
    target = tmp_path / "repository"
    gfm = tiny_gfm(tmp_path / "gfm", members=2)
    write_model(target, RepositoryModel("gfm", gfm, Settings(precision="fp64", threads=1)))
    return target


def test_one_that_is_not_there_at_first_is_left_out_with_a_warning(first, caplog):
    from atomsieve.serve.server.process import find_free_ports

    gone = f"grpc://127.0.0.1:{find_free_ports(1)[0]}"
    with RemotePredictor.connect(f"{first.grpc},{gone}", credentials=SHOWN, deadline=2) as remote:
        assert f"left out for now: {gone}" in caplog.text
        assert len(remote(copper_oxides(3)).energy) == 3
    with pytest.raises(Unavailable, match="no endpoint answers"):
        RemotePredictor.connect(gone, credentials=SHOWN, deadline=2)
