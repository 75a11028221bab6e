"""Options of `screen run` for a precision cascade."""

from __future__ import annotations

from typing import Annotated, Any

import typer

CASCADE = "Precision cascade"

CascadeOption = Annotated[
    str | None,
    typer.Option(
        "--cascade",
        rich_help_panel=CASCADE,
        show_default=False,
        help="Screen all in a cheaper precision, then what matters in a better one, e.g. bf16:fp32.",
    ),
]

CascadeMembersOption = Annotated[
    int | None,
    typer.Option(
        "--cascade-members",
        min=1,
        rich_help_panel=CASCADE,
        show_default=False,
        help="Screen all with so many members. [default: all members]",
    ),
]

CascadeSafetyOption = Annotated[
    float,
    typer.Option(
        "--cascade-safety",
        min=1.0,
        rich_help_panel=CASCADE,
        help="The error bound is the largest measured error times this.",
    ),
]


def check_cascade(ctx: Any) -> None:
    """Refuse options that a cascade does not go with, or that go only with one."""
    from atomsieve.errors import UsageError

    given = ctx.params

    def said(name: str) -> bool:
        return getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"

    if given["cascade"] is None:
        for name in ("cascade_members", "cascade_safety"):
            if said(name):
                raise UsageError(f"--{name.replace('_', '-')} goes with --cascade; give e.g. --cascade bf16:fp32")
    elif said("precision"):
        raise UsageError(
            f"--precision {given['precision']} with --cascade {given['cascade']}, which names both precisions; leave "
            "out one of them"
        )
