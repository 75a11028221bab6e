"""The command frame: quick help, one line for every error, the promised exit codes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import typer

from atomsieve.cli import main
from atomsieve.errors import AtomSieveError, DataError, Interrupted, UsageError

HEAVY = ("torch", "adios2", "ase", "numpy", "scipy", "sklearn", "mpi4py", "pymatgen", "pydantic", "tritonclient")


def command(*args: str, **options) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "atomsieve", *args]
    return subprocess.run(program, capture_output=True, text=True, timeout=60, **options)


@pytest.fixture
def verb(monkeypatch):
    """Let a test put its own function under the name of a verb."""

    def put(function, name="data"):
        module = types.ModuleType("pretended")
        module.app = function
        monkeypatch.setitem(sys.modules, "pretended", module)
        monkeypatch.setitem(main.VERBS, name, ("pretended", "a verb of the test"))

    return put


def failing(error: BaseException):
    def function() -> None:
        raise error

    return function


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from atomsieve.cli.main import run; code = run('atomsieve', ['--help']);"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules]); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout


def test_help_lists_every_verb_with_its_line():
    shown = " ".join(command("--help").stdout.replace("│", " ").split())
    for name, (_, line) in main.VERBS.items():
        assert re.search(rf"\b{name}\b", shown)
        assert line.split(".")[0].split(";")[0] in shown


@pytest.mark.parametrize("name", sorted(main.VERBS))
def test_every_verb_loads_and_has_help(name, capsys):
    assert main.run("atomsieve", [name, "--help"]) == 0
    assert "Usage" in capsys.readouterr().out


def test_screen_is_the_same_verb_under_its_short_name(capsys):
    assert main.run("atomsieve", ["screen", "--help"]) == 0
    long = capsys.readouterr().out
    assert main.run("screen", ["--help"]) == 0
    short = capsys.readouterr().out
    panel = long[long.index("─ Commands") :]
    assert panel == short[short.index("─ Commands") :]


def test_version():
    import atomsieve

    assert command("--version").stdout.strip() == f"atomsieve {atomsieve.__version__}"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["scren"], "did you mean 'screen'"),
        (["--colour"], "--colour"),
        (["data", "--nothing-like-it"], "--nothing-like-it"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_2(args, said, capsys):
    assert main.run("atomsieve", args) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said.lower() in err.lower()
    assert "--help" in err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (AtomSieveError("the sky fell;\n  hold it up"), 1, "error: the sky fell; hold it up"),
        (DataError("x.bp is not BP5"), 1, "error: x.bp is not BP5"),
        (UsageError("--top must be positive, got -1"), 2, "error: --top must be positive, got -1"),
        (Interrupted("stopped after chunk 7"), 75, "interrupted: stopped after chunk 7"),
        (KeyboardInterrupt(), 75, "interrupted: run the same command again to go on"),
        (ZeroDivisionError("1/0"), 1, "internal error: ZeroDivisionError: 1/0; run with --debug to see where"),
        (RuntimeError(), 1, "internal error: RuntimeError; run with --debug to see where"),
    ],
)
def test_an_error_is_one_line_with_its_exit_code(verb, capsys, error, code, line):
    verb(failing(error))
    assert main.run("atomsieve", ["data"]) == code
    assert capsys.readouterr().err == line + "\n"


@pytest.mark.parametrize("args", [["--debug", "data"], ["data", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(verb, capsys, args):
    verb(failing(DataError("torn")))
    assert main.run("atomsieve", args) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "in function" in err
    assert "error: torn" in err
    assert err.startswith("launcher: ")


def test_debug_after_two_dashes_belongs_to_the_verb(verb):
    seen = []

    def function(words: list[str]) -> None:
        seen.extend(words)

    verb(function)
    assert main.run("atomsieve", ["data", "--", "--debug"]) == 0
    assert seen == ["--debug"]


def test_a_verb_chooses_its_exit_code(verb):
    verb(failing(typer.Exit(3)))
    assert main.run("atomsieve", ["data"]) == 3

    def returns() -> int:
        return 3

    verb(returns)
    assert main.run("atomsieve", ["data"]) == 3


def test_a_closed_pipe_is_no_error():
    code = (
        "import sys, types; from atomsieve.cli import main\n"
        "def app():\n  for k in range(200000): print('a long enough line to fill the pipe', k)\n"
        "m = types.ModuleType('pretended'); m.app = app; sys.modules['pretended'] = m\n"
        "main.VERBS['data'] = ('pretended', 'x'); sys.exit(main.run('atomsieve', ['data']))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(timeout=60) == 0


RANKS = """
import sys, time, types
from atomsieve.cli import main
from atomsieve.errors import DataError

def app():
    from mpi4py import MPI
    if MPI.COMM_WORLD.rank in {failing}:
        raise DataError("torn page")
    MPI.COMM_WORLD.recv(source=1)

module = types.ModuleType("pretended")
module.app = app
sys.modules["pretended"] = module
main.VERBS["data"] = ("pretended", "x")
sys.exit(main.run("atomsieve", ["data"]))
"""


@pytest.mark.mpi
@pytest.mark.parametrize("failing", [{1}, {0, 1}])
def test_a_rank_that_fails_ends_the_job_soon(tmp_path, failing):
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if mpirun is None:
        pytest.skip("no mpirun")
    program = tmp_path / "program.py"
    program.write_text(RANKS.replace("{failing}", repr(failing)))
    started = time.monotonic()
    command = [mpirun, "-n", "2", sys.executable, str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "[rank 1] error: torn page" in done.stderr
    assert time.monotonic() - started < 60
