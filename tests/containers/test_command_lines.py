"""Every command of ours in the scripts, manifests, images and on the page about them can be given."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from atomsieve.cli.main import load_verb

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs/deploying.md"]
COMMAND = re.compile(r"(?<![\w./~-])(atomsieve|screen) (?=[a-z])")
ENDS = {"|", "||", "&&", "&", ";", ">", ">>", "<", ")", "then"}


@dataclass(frozen=True)
class Line:
    """A command line of ours: where it stands, its words after the program, whether it runs or is a comment."""

    where: str
    program: str
    words: tuple[str, ...]
    runs: bool


def sources() -> list[Path]:
    found = [p for p in (ROOT / "containers").rglob("*") if p.is_file() and p.suffix not in (".json", ".txt", ".pyc")]
    return sorted(found) + [page for page in PAGES if page.is_file()]


def logical_lines(text: str) -> list[tuple[int, str, bool]]:
    """Return number, text and whether it is a comment of each line, continuations joined."""
    found: list[tuple[int, str, bool]] = []
    going_on = False
    for number, line in enumerate(text.splitlines(), 1):
        comment = line.lstrip().startswith("#")
        bare = line.lstrip().lstrip("#").strip() if comment else line.strip()
        if going_on:
            first, before, kind = found.pop()
            found.append((first, f"{before} {bare.removesuffix(chr(92)).strip()}", kind))
        else:
            found.append((number, bare.removesuffix("\\").strip(), comment))
        going_on = bare.endswith("\\")
    return found


def commands_in(text: str, where: str = "script.sh", *, script: bool = True) -> list[Line]:
    found = []
    for number, raw, comment in logical_lines(text):
        if raw.startswith(("COPY ", "for part in ")):  # names of files
            continue
        line = raw
        if re.search(r"\[\"", raw):  # the form of a list, as in CMD ["atomsieve", "serve"]
            line = re.sub(r'", *"', " ", raw).replace('"]', "]")
        for match in COMMAND.finditer(line):
            rest = line[match.end() :]
            quoted = line[: match.start()].count("`") % 2 == 1
            if quoted:
                rest = rest.partition("`")[0]
            found.append(
                Line(f"{where}:{number}", match[1], tuple(words_of(rest)), script and not comment and not quoted)
            )
    return found


def words_of(text: str) -> list[str]:
    """Return the words of a command line up to what ends it."""
    text = re.split(r"\s#|\s\d?>|[\]`]", text)[0]
    try:
        lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        words = list(lexer)
    except ValueError:  # prose with an apostrophe
        words = text.split()
    for k, word in enumerate(words):
        if word in ENDS:
            return words[:k]
    return words


@cache
def verb(name: str):
    return load_verb(name)


def resolve(line: Line):
    """Return the click command of a line and the words that are left; None where the words are prose."""
    words = list(line.words)
    if line.program == "screen":
        command = verb("screen")
    else:
        from atomsieve.cli.main import VERBS

        if words[0] not in VERBS:
            return None
        command = verb(words.pop(0))
    while hasattr(command, "commands"):
        if words and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        elif getattr(command, "default", None) or "run" in command.commands:
            if line.program == "screen":
                return None
            command = command.commands["run"]
        else:
            return None
    return command, words


def all_commands() -> list[Line]:
    return [
        line
        for path in sources()
        for line in commands_in(
            path.read_text(), str(path.relative_to(ROOT)), script=path.suffix not in (".md", ".yaml", ".yml", ".py")
        )
    ]


def options_of(command) -> dict[str, object]:
    known = {name: p for p in command.params if p.param_type_name == "option" for name in (*p.opts, *p.secondary_opts)}
    return known | dict.fromkeys(("--help", "-h", "--debug"))


def faults(line: Line) -> list[str]:
    """Return what is wrong with a command line; nothing for one that can be given."""
    found = resolve(line)
    if found is None:
        return ["no such verb"] if line.runs else []
    command, words = found
    known, wrong, given, positional = options_of(command), [], set(), []
    waiting: str | None = None
    for word in words:
        if waiting is not None and not word.startswith("--"):
            waiting = None
            continue
        if waiting is not None:
            wrong.append(f"{waiting} lacks its value")
            waiting = None
        if not re.match(r"--?[a-z]", word):
            positional.append(word)
            continue
        name, equals, _ = word.partition("=")
        if name not in known:
            wrong.append(f"{command.name} has no option {name}")
            break
        given.add(known[name])
        if known[name] is not None and not known[name].is_flag and not equals:
            waiting = name
    if waiting is not None:
        wrong.append(f"{waiting} lacks its value")
    if line.runs and not wrong:
        wrong += [f"{p.opts[0]} is required" for p in known.values() if p is not None and p.required and p not in given]
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        least = sum(p.required for p in arguments)
        most = 1000 if any(p.nargs == -1 for p in arguments) else len(arguments)
        rest = [word for word in positional if not word.startswith("$@")]
        if not least <= len(rest) <= most:
            wrong.append(f"{command.name} takes {least} to {most} arguments, got {rest}")
    return wrong


def test_every_command_can_be_given():
    lines = all_commands()
    wrong = [
        f"{line.where}: {fault} ({line.program} {' '.join(line.words)})" for line in lines for fault in faults(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_commands_that_matter_were_found():
    seen = {(line.program, *line.words[:2]) for line in all_commands() if line.runs}
    for wanted in (
        ("screen", "run"),
        ("atomsieve", "train", "run"),
        ("atomsieve", "serve", "start"),
        ("atomsieve", "serve", "check"),
    ):
        assert [found for found in seen if found[: len(wanted)] == wanted], wanted
    where = {line.where.rpartition(":")[0] for line in all_commands() if line.runs}
    jobs = {str(p.relative_to(ROOT)) for p in (ROOT / "containers/jobs").rglob("*.*")}
    assert jobs <= where


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("screen run candidates.bp --ensemble gfm/ --colour red", "run has no option --colour"),
        ("srun -n 4 screen run candidates.bp --ensemble --top 5", "--ensemble lacks its value"),
        ("atomsieve serve start gfm/ --token-file", "--token-file lacks its value"),
        ("atomsieve serve check", "check takes 1 to 1 arguments, got []"),
        ("screen march candidates.bp", "no such verb"),
        ('CMD ["atomsieve", "serve", "check", "grpc://h", "--tokn", "f"]', "check has no option --tokn"),
    ],
)
def test_a_wrong_command_is_noticed(text, fault):
    [line] = commands_in(f"set -e\n{text} || code=$?\n")
    assert faults(line) == [fault]


def test_options_over_several_lines_are_read():
    [line] = commands_in('"${run[@]}" screen run "$c" \\\n    --ensemble "$e" --out "a b" \\\n    --top 5 || code=$?\n')
    assert line.words == ("run", "$c", "--ensemble", "$e", "--out", "a b", "--top", "5")
    assert faults(line) == []
