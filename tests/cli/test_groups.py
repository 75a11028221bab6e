"""Option groups: a command sees the fields of a dataclass as its options, and gets the dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from atomsieve.cli.groups import expand_groups, given_options, merge_fields

BOX = Annotated[float, typer.Option("--box", help="Edge.")]


@dataclass(frozen=True)
class Inner:
    """A group in a group."""

    seed: Annotated[int, typer.Option("--seed", min=0)] = 0


@dataclass(frozen=True)
class Boxes:
    """Boxes."""

    box: BOX = 10.0
    wide: Annotated[bool, typer.Option("--wide/--narrow")] = False
    inner: Inner = field(default_factory=Inner)


def invoke(*words, **how):
    """Return what a command of a name and a group gets, and its help."""
    got = []
    app = typer.Typer()

    @app.command()
    @expand_groups(**how)
    def verb(
        context: typer.Context, name: str, *, before: Annotated[int, typer.Option("--before")] = 1, boxes: Boxes
    ) -> None:
        """Take boxes."""
        got.append((name, before, boxes, given_options(context)))

    runner = CliRunner()
    result = runner.invoke(app, list(words))
    return result, got, runner.invoke(app, ["--help"]).output


def test_a_command_gets_the_group_that_its_options_make():
    result, got, text = invoke("x", "--box", "3", "--wide", "--seed", "7")
    assert result.exit_code == 0 and got == [("x", 1, Boxes(3.0, True, Inner(7)), {"name", "box", "wide", "seed"})]
    assert "Take boxes." in text and text.index("--before") < text.index("--box") < text.index("--seed")
    assert merge_fields(got[0][2], got[0][2].inner) == {"box": 3.0, "wide": True, "inner": Inner(7), "seed": 7}


def test_defaults_are_those_of_the_group_or_of_the_command():
    assert invoke("x")[1] == [("x", 1, Boxes(), {"name"})]
    assert invoke("x", defaults={"box": 5.0})[1][0][2].box == 5.0


def test_options_are_left_out_or_come_first():
    result, _, text = invoke("x", "--wide", without=("wide",))
    assert result.exit_code == 2 and "--wide" not in text
    assert invoke("x", without=("wide",))[1][0][2] == Boxes()
    text = invoke("x", first=("seed",))[2]
    assert text.index("--seed") < text.index("--before")


def test_checks_of_typer_hold_inside_a_group():
    assert invoke("x", "--seed", "-1")[0].exit_code == 2


def test_two_options_of_one_name_are_refused():
    with pytest.raises(AssertionError, match="two options are named box"):

        @expand_groups()
        def verb(*, box: BOX = 1.0, boxes: Boxes) -> None:
            """Take both."""
