"""Images: hadolint, the Apptainer definition's sections, and that they run the steps that the plain build runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from atomsieve.serve.installation import NVIDIA_IMAGE, WHEEL

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "containers"
DOCKERFILES = sorted(FOLDER.glob("Dockerfile*"))
SECTIONS = (
    "arguments",
    "setup",
    "files",
    "post",
    "environment",
    "runscript",
    "startscript",
    "test",
    "labels",
    "help",
)
"""Sections of an Apptainer definition (those of apps left out)."""
HEADER = {"bootstrap", "from", "stage", "fingerprints"}


def tool(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} on this machine")
    return found


def instructions(path: Path) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile: word and rest, continuations joined, comments left out."""
    text = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line.strip()]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_hadolint_finds_nothing(path):
    done = subprocess.run([tool("hadolint"), "--no-color", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_every_ignored_rule_has_its_reason(path):
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        if "hadolint ignore" in line:
            assert re.match(r"# [A-Z].*\.$", lines[number - 1]), line


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_an_image_is_pinned_and_does_not_run_as_root(path):
    found = instructions(path)
    [base] = [rest.removeprefix("BASE=") for word, rest in found if word == "ARG" and rest.startswith("BASE=")]
    assert re.fullmatch(r"[\w./-]+:\d+(\.\d+)+-[\w.-]+", base), f"{base} is not pinned to a release"
    stages = [rest for word, rest in found if word == "FROM"]
    assert stages == ["${BASE} AS build", "${BASE} AS runtime"]
    last = found[max(k for k, (word, _) in enumerate(found) if word == "FROM") :]
    assert [rest for word, rest in last if word == "USER"] == ["10001:10001"]
    assert next(rest for word, rest in last if word == "HEALTHCHECK").endswith(
        'CMD ["/opt/containers/steps/healthcheck.sh"]'
    )
    assert [rest for word, rest in last if word == "CMD"] == ['["/opt/containers/steps/serve.sh"]']
    labels = " ".join(rest for word, rest in last if word == "LABEL")
    for name in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{name}=" in labels
    assert "g++" not in " ".join(rest for _, rest in last), "the compiler stays in the build stage"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_no_secret_is_put_into_an_image(path):
    for word, rest in instructions(path):
        if word in ("ARG", "ENV", "LABEL"):
            assert not re.search(r"(?i)token|secret|passw|key", rest.replace("TOKEN_FILE", "")), rest


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_what_is_copied_is_there_and_not_ignored(path):
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    for word, rest in instructions(path):
        if word == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in patterns or any(source.startswith(p[1:] + "/") for p in patterns), source
    assert patterns[0] == "*", "all is ignored that is not named"
    named = {p[1:] for p in patterns if p.startswith("!")}
    assert all((ROOT / name).exists() for name in named)
    for kept in ("token", "containers/token", "containers/.env", ".git", ".venv", "tls.key"):
        assert not any(fnmatch(kept, name) or kept.startswith(f"{name}/") for name in named), kept


def test_images_the_definition_and_the_plain_build_run_the_same_steps():
    built = ["venv.sh", "dependencies.sh", "server.sh", "wheel.sh", "package.sh", "verify.sh"]
    for path in [*DOCKERFILES, FOLDER / "atomsieve.def", FOLDER / "build_plain.sh"]:
        text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))
        called = re.findall(r"steps\"?/([\w.]+\.sh)", text)
        wanted = built if path.name != "Dockerfile.triton" else [b for b in built if b != "server.sh"]
        assert [name for name in dict.fromkeys(called) if name in built] == wanted, path.name
        for name in called:
            assert os.access(FOLDER / "steps" / name, os.X_OK), name


def test_the_server_of_the_images_is_the_one_that_the_package_names():
    assert f"wheel={WHEEL}\n" in (FOLDER / "steps/server.sh").read_text()
    assert f"TRITON := {WHEEL}\n" in (ROOT / "Makefile").read_text()
    assert str(NVIDIA_IMAGE) == "/opt/tritonserver", "where the base of Dockerfile.triton has it"
    base = re.search(r"tritonserver:(\d+)\.(\d+)-py3", (FOLDER / "Dockerfile.triton").read_text())
    assert (int(base[1]), int(base[2])) >= (24, 11), "older ones bring Python 3.10"


def test_constraints_pin_all_that_is_asked_for():
    sys.path.insert(0, str(FOLDER / "steps"))
    try:
        from constraints import EXTRAS, TOOLS
        from requirements import requirements
    finally:
        sys.path.pop(0)
    pinned = {}
    for line in (FOLDER / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, _, version = line.partition("==")
            assert re.fullmatch(r"[a-z0-9-]+", name), line
            assert re.fullmatch(r"[\w.]+", version), f"{line}: no local part, so that other builds fit"
            pinned[name] = version
    assert list(pinned) == sorted(pinned)
    for text in [*requirements(ROOT / "pyproject.toml", EXTRAS), *TOOLS]:
        asked = Requirement(text)
        assert asked.specifier.contains(pinned[asked.name.lower().replace("_", "-")]), text
    texts = "".join(p.read_text() for p in [*DOCKERFILES, FOLDER / "atomsieve.def"])
    used = re.findall(r'^ARG EXTRAS="([a-z ]+)"$|^    extras=([a-z ]+)$', texts, re.MULTILINE)
    assert len(used) == len(DOCKERFILES) + 1
    for extras in used:
        assert set("".join(extras).split()) <= set(EXTRAS)


def test_an_unknown_extra_is_refused():
    program = FOLDER / "steps/requirements.py"
    done = subprocess.run(
        [sys.executable, program, ROOT / "pyproject.toml", "serv"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: 'serv' is no extra of atomsieve; allowed: ")


def definition_faults(text: str) -> list[str]:
    """Return what Apptainer would object to in a definition: its header, its sections, its build arguments."""
    head, *rest = re.split(r"^%", text, flags=re.MULTILINE)
    wrong = []
    header = {}
    for line in head.splitlines():
        if line.strip() and not line.startswith("#"):
            key, colon, value = line.partition(":")
            if not colon or key.strip().lower() not in HEADER:
                wrong.append(f"header: {line}")
            header[key.strip().lower()] = value.strip()
    if not head.lstrip().lower().startswith("bootstrap:") or not header.get("from"):
        wrong.append("header: Bootstrap comes first, and From is needed")
    bodies = {}
    for section in rest:
        name = section.split(None, 1)[0]
        if name not in SECTIONS:
            wrong.append(f"no section is called %{name}")
        elif name in bodies:
            wrong.append(f"%{name} is there twice")
        bodies[name] = section[len(name) :]
    defaults = dict(re.findall(r"^\s*(\w+)=(.*)$", bodies.get("arguments", ""), re.MULTILINE))
    wrong += [
        f"{{{{ {name} }}}} has no default" for name in set(re.findall(r"\{\{\s*(\w+)\s*\}\}", text)) - defaults.keys()
    ]
    for line in bodies.get("labels", "").splitlines():
        if line.strip() and len(line.split(None, 1)) != 2:
            wrong.append(f"label without value: {line}")
    return wrong


def test_the_definition_is_well_formed(tmp_path):
    path = FOLDER / "atomsieve.def"
    text = path.read_text()
    assert definition_faults(text) == []
    base = re.search(r"^From: (.*)$", text, re.MULTILINE)[1]
    assert f"ARG BASE={base}\n" in (FOLDER / "Dockerfile").read_text(), "one base for both"
    bodies = {s.split(None, 1)[0]: s.split("\n", 1)[1] for s in re.split(r"^%", text, flags=re.MULTILINE)[1:]}
    for line in filter(str.strip, bodies["files"].splitlines()):
        assert (ROOT / line.split()[0]).exists(), line
    assert "MPI4PY_LIBMPI" in bodies["help"]
    for name in ("post", "environment", "runscript", "test"):
        script = tmp_path / f"{name}.sh"
        script.write_text(f"#!/bin/sh\n{re.sub(r'{{.*?}}', 'mpi', bodies[name])}")
        subprocess.run([tool("shellcheck"), "--severity=warning", script], check=True)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("%post", "%posts"), "no section is called %posts"),
        (("Bootstrap:", "Bootstraps:"), "header: Bootstraps: docker"),
        (("%help", "%labels"), "%labels is there twice"),
        (("torch_index=\n", "\n"), "{{ torch_index }} has no default"),
    ],
)
def test_a_fault_in_the_definition_is_noticed(change, fault):
    assert fault in definition_faults((FOLDER / "atomsieve.def").read_text().replace(*change))


def test_scratch_folders_of_read_only_containers_may_hold_programs():
    """The program of the Python backend is put together in /tmp; without a word, Docker forbids to run it there."""
    places = [*FOLDER.rglob("*.y*ml"), *(ROOT / "docs").glob("*.md")]
    given = [word for path in places for word in re.findall(r"tmpfs\W+(/tmp[\w:,]*)", path.read_text())]
    assert len(given) >= 3 and set(given) == {"/tmp:exec"}
