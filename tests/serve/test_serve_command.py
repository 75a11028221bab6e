"""`atomsieve serve`: repositories, what is refused, the log's two forms."""

from __future__ import annotations

import io
import json
import os
import socket
import sys
from pathlib import Path

import pytest

from atomsieve.cli.main import run
from atomsieve.serve.logs import Log, parse_model_name
from atomsieve.serve.model.settings import Settings
from atomsieve.serve.server.process import TritonProcess, find_free_ports
from tests.helpers import tiny_gfm
from tests.serve.triton import installation


def said(capsys, *args):
    code = run("atomsieve", ["serve", *map(str, args)])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_a_repository_of_several_ensembles_and_versions(tmp_path, served_gfm, capsys):
    other, out = tiny_gfm(tmp_path / "other", members=2), tmp_path / "models"
    code, text, _ = said(
        capsys,
        "repository",
        f"a={served_gfm}",
        f"b={other}",
        "--out",
        out,
        "--precision",
        "fp64",
        "--max-request-atoms",
        77,
        "--threads",
        1,
        "--head",
        "organic",
    )
    assert code == 0 and f"wrote {out / 'a/1'}" in text and f"serve start --repository {out}" in text
    settings = Settings.read(out / "b/1")
    assert (settings.limits.atoms, settings.precision, settings.threads, settings.head) == (77, "fp64", 1, "organic")
    code, _, error = said(capsys, "repository", f"a={served_gfm}", "--out", out)
    assert code == 1 and "is there already" in error and "--overwrite" in error
    assert said(capsys, "repository", f"a={served_gfm}", "--out", out, "--version", 2)[0] == 0
    assert (out / "a/2/model.py").is_file()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--precision", "fp8"], "unknown precision 'fp8'"),
        (["--backend", "pythn"], "unknown backend 'pythn' (did you mean 'python'?)"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--gpus", "0,1"], "--gpus goes with --device cuda"),
        (["--device", "cuda", "--gpus", "one"], "--gpus takes numbers"),
        (["--head", "wood"], "unknown head 'wood'"),
        (["--version", "0"], "--version"),
        (["--max-request-bytes", "5"], "--max-request-bytes"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, served_gfm, capsys, options, says):
    code, _, error = said(capsys, "repository", served_gfm, "--out", tmp_path / "models", *options)
    assert code == 2 and says in error and len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "x" * 65, "1x"])
def test_a_name_is_a_name(tmp_path, served_gfm, capsys, name):
    code, _, error = said(capsys, "repository", f"{name}={served_gfm}", "--out", tmp_path / "models")
    assert code == 2 and "cannot name a model" in error and not list(tmp_path.glob("models/*"))


def test_what_cannot_start_says_why(tmp_path, served_gfm, capsys):
    models = tmp_path / "models"
    assert said(capsys, "repository", served_gfm, "--out", models, "--threads", 1)[0] == 0
    given = ["start", "--repository", models]
    assert "name either" in said(capsys, "start")[2]
    assert "name either" in said(capsys, *given, served_gfm)[2]
    code, _, error = said(capsys, *given, "--listen", "0.0.0.0")
    assert code == 2 and "--token-file FILE" in error and "--insecure" in error
    assert (
        "--listen 'no.such.host.invalid' is no address" in said(capsys, *given, "--listen", "no.such.host.invalid")[2]
    )
    assert "cannot be written" in said(capsys, *given, *ports(), "--log-file", tmp_path / "no/log")[2]
    assert "is no model repository" in said(capsys, "start", "--repository", tmp_path)[2]
    assert "not a program" in said(capsys, *given, *ports(), "--tritonserver", models)[2]
    same = [*ports(), "--http-port", 9, "--grpc-port", 9]
    assert "--grpc-port and --http-port are both 9" in said(capsys, *given, *same)[2]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, error = said(capsys, *given, *ports(), "--grpc-port", port)
        assert code == 1 and f"port {port} (Address already in use); choose another: --grpc-port" in error


def test_options_that_would_do_nothing_are_refused(tmp_path, served_gfm, capsys):
    models = tmp_path / "models"
    assert said(capsys, "repository", served_gfm, "--out", models, "--threads", 1)[0] == 0
    given = ["start", "--repository", models]
    for options, says in (
        (["--precision", "fp64", "--instances", 2], "--precision, --instances would do nothing with --repository"),
        (["--max-structure-atoms", 5], "--max-structure-atoms would do nothing with --repository"),
        (["--device", "cuda"], "--device would do nothing with --repository"),
    ):
        code, _, error = said(capsys, *given, *options)
        assert code == 2 and says in error and len(error.strip().splitlines()) == 1


def test_what_is_cheap_is_checked_before_anything_is_written(tmp_path, served_gfm, capsys, monkeypatch):
    installation()
    monkeypatch.setattr("atomsieve.serve.repository.write.write_repository", None)
    authority = pytest.importorskip("trustme").CA()
    for name in ("one", "two"):
        issued = authority.issue_cert("127.0.0.1")
        issued.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
    (tmp_path / "junk.pem").write_text("junk")
    one = ["--tls-cert", tmp_path / "one.pem", "--tls-key"]
    for options, says in (
        ([*one, tmp_path / "two.key"], f"{tmp_path / 'two.key'} is not the key of the certificate"),
        ([*one, tmp_path / "junk.pem"], "junk.pem"),
        (
            [*one, tmp_path / "one.key", "--http-port", 0, "--tls-client-ca", tmp_path / "junk.pem"],
            "junk.pem cannot be used as TLS ca",
        ),
        (["--listen", "0.0.0.0"], "--token-file FILE"),
        (["--head", "wood"], "unknown head 'wood'"),
        (["--log-file", tmp_path / "no/log"], "cannot be written"),
        (["--tritonserver", tmp_path], "not a program"),
        (["--tritonserver", "/bin/false"], "/bin/false is no tritonserver"),
        (["--graph-backend", "triton", "--repository", tmp_path], "name either"),
    ):
        code, _, error = said(capsys, "start", served_gfm, *ports(), "--log", "text", *options)
        assert code in (1, 2) and says in error.splitlines()[-1], error


def test_a_gpu_that_is_not_here(tmp_path, served_gfm, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    models = tmp_path / "models"
    code, _, error = said(capsys, "start", served_gfm, *ports(), "--device", "cuda")
    assert code == 1 and "--device cuda, but there is no GPU here; leave out --device" in error
    assert said(capsys, "repository", served_gfm, "--out", models, "--device", "cuda")[0] == 0  # for another machine
    code, _, error = said(capsys, "start", "--repository", models, *ports())
    assert code == 1 and f"{models} is for --device cuda, but there is no GPU here" in error
    models = tmp_path / "auto"
    assert said(capsys, "repository", served_gfm, "--out", models, "--device", "auto")[0] == 0
    assert Settings.read(models / "gfm/1").device == "cpu"


def ports():
    grpc, http, metrics = find_free_ports(3)
    return "--grpc-port", grpc, "--http-port", http, "--metrics-port", metrics


def test_check_tells_sound_endpoints_from_others(tmp_path, server, served_gfm, capsys):
    code, out, _ = said(capsys, "check", server.grpc, "--ensemble", served_gfm, "--head", "organic")
    assert code == 0 and f"url: {server.grpc}" in out and "error_of_allowed: " in out and "\nsound: " in out
    code, _, error = said(capsys, "check", server.grpc, "--ensemble", tmp_path / "nothing")
    assert code == 1 and f"no ensemble at {tmp_path / 'nothing'}" in error
    for url in (server.grpc, server.http):
        code, _, error = said(capsys, "check", url, "--model", "gmf")
        assert code == 1 and "unknown model: 'gmf'" in error and "--model (a single ensemble is served as gfm)" in error
    assert said(capsys, "check", server.http, "--quiet") == (0, "", "")
    other = tiny_gfm(tmp_path / "other", members=2)
    code, _, error = said(capsys, "check", server.grpc, "--ensemble", other)
    assert code == 1 and len(error.strip().splitlines()) == 1
    code, _, error = said(capsys, "check", server.grpc, "--head", "organik")
    assert code == 2 and "did you mean 'organic'" in error
    [nobody] = find_free_ports(1)
    code, _, error = said(capsys, "check", f"grpc://127.0.0.1:{nobody}", "--timeout", 5)
    assert code == 1 and f"127.0.0.1:{nobody}" in error
    assert said(capsys, "check", "ftp://here")[0] == 2


def test_both_forms_of_the_log(tmp_path):
    lines = [
        "2026-01-02T03:04:05Z I 31961 model_lifecycle.cc:839] \"successfully loaded 'gfm'\"",
        "I0102 03:04:05.123456 12 grpc_server.cc:2463] Started GRPCInferenceService at 127.0.0.1:8001",
        '2026-01-02T03:04:05Z E 31961 server.cc:241] "CudaDriverHelper has not been initialized."',
        "2026-01-02T03:04:05Z E 1 model.cc:9] it is hunter2-hunter2 that is wrong",
        "+-----+",
        "| table |",
        "",
        '{"time": 1795283156.916, "event": "batch", "model": "gfm", "requests": 2}',
        '{"not": "ours"}',
        "{broken",
        "Signal (15) received.",
    ]
    stream, text = io.StringIO(), io.StringIO()
    log = Log(stream, "json", tmp_path / "log.json", ["hunter2-hunter2"])
    for_people = Log(text, "text", secrets=["hunter2-hunter2"])
    for line in lines:
        log.server_line(line)
        for_people.server_line(line)
    log.event("ready", text="two\nlines")
    log.close()
    records = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [json.loads(line) for line in (tmp_path / "log.json").read_text().splitlines()] == records
    assert all(set(r) >= {"time", "level", "event"} for r in records)
    assert records[0]["text"] == "successfully loaded 'gfm'" and records[1]["text"].startswith("Started GRPC")
    assert [r["level"] for r in records[:4]] == ["info", "info", "info", "error"]
    assert records[3]["text"] == "it is *** that is wrong"
    assert records[4] == {
        "time": "2026-11-21T17:45:56.916Z",
        "level": "info",
        "event": "batch",
        "model": "gfm",
        "requests": 2,
    }
    assert [r["event"] for r in records[5:]] == ["output", "output", "output", "ready"]
    assert "hunter2" not in stream.getvalue()
    assert [line.split()[1:3] for line in text.getvalue().splitlines()] == [["ERROR", "server"]]
    assert "hunter2" not in text.getvalue()


def test_no_line_of_a_model_stops_the_log():
    stream, text = io.StringIO(), io.StringIO()
    lines = [
        json.dumps({"event": "x", "time": 1, "when": 3, "level": 5, "self": 1}),
        '{"event": "far", "time": 1e300}',
        '{"event": "no", "time": NaN}',
        '{"a":' * 5000,
        json.dumps({"event": "bell", "time": 1, "level": "error", "text": "a\x1b[31m\nb", "traceback": "1\n\t2"}),
    ]
    for log in (Log(stream), Log(text, "text")):
        for line in lines:
            log.server_line(line)
            parse_model_name(line)
    records = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [r["event"] for r in records] == ["x", "far", "no", "output", "bell"]
    assert records[0]["when_"] == 3 and records[0]["level"] == "5" and records[1]["time"].startswith("20")
    shown = text.getvalue()
    assert "\x1b" not in shown and shown.endswith("a\\x1b[31m\\nb\n    1\n    \\t2\n")
    assert parse_model_name('{"model": "gfm"}') == "gfm"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full to write to")
def test_a_log_that_cannot_be_written_is_reported_and_the_server_goes_on(tmp_path):
    stream = io.StringIO()
    log = Log(stream, file=Path("/dev/full"))
    for k in range(3):
        log.event("batch", k=k)
    log.close()
    records = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [r["event"] for r in records] == ["log_lost", "batch", "batch", "batch"]
    assert "No space left" in records[0]["text"]
    closed = io.StringIO()
    closed.close()
    log = Log(closed, file=tmp_path / "log")
    log.event("batch")
    log.close()
    assert [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()] == ["batch", "log_lost"]


def test_what_a_server_writes_is_read_whatever_becomes_of_it():
    """More than a pipe holds: a reader that stopped would let the program wait for ever."""

    def fails(line):
        raise RuntimeError(line)

    code = "for _ in range(3000): print('x' * 99)"
    process = TritonProcess([sys.executable, "-c", code], dict(os.environ), fails)
    try:
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.kill()
    assert process.lost == 3000
