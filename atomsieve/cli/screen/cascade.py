"""Options of `screen run` for a precision cascade."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from atomsieve.cli.groups import given_options

CASCADE = "Precision cascade"


@dataclass(frozen=True)
class CascadeOptions:
    """Screen in a cheaper precision first."""

    cascade: Annotated[
        str | None,
        typer.Option(
            "--cascade",
            rich_help_panel=CASCADE,
            show_default=False,
            help="Screen all in a cheaper precision, then what matters in a better one, e.g. bf16:fp32.",
        ),
    ] = None
    cascade_members: Annotated[
        int | None,
        typer.Option(
            "--cascade-members",
            min=1,
            rich_help_panel=CASCADE,
            show_default=False,
            help="Screen all with so many members. [default: all members]",
        ),
    ] = None
    cascade_safety: Annotated[
        float,
        typer.Option(
            "--cascade-safety",
            min=1.0,
            rich_help_panel=CASCADE,
            help="The error bound is the largest measured error times this.",
        ),
    ] = 2.0


def check_cascade(ctx: Any) -> None:
    """Refuse options that a cascade does not go with, or that go only with one.

    Raises
    ------
    UsageError
        naming the option.
    """
    from atomsieve.errors import UsageError

    values, given = ctx.params, given_options(ctx)
    if values["cascade"] is None:
        for name in ("cascade_members", "cascade_safety"):
            if name in given:
                raise UsageError(f"--{name.replace('_', '-')} goes with --cascade; give e.g. --cascade bf16:fp32")
    elif "precision" in given:
        raise UsageError(
            f"--precision {values['precision']} with --cascade {values['cascade']}, which names both precisions; leave "
            "out one of them"
        )
