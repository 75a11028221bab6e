"""`atomsieve data formats`: the formats of files that are read and written."""

from __future__ import annotations

from atomsieve.cli.common import console
from atomsieve.cli.data_shared import skip_torch


def formats_command() -> None:
    """List the formats of files: how each is recognised, whether it is written, and what it cannot hold."""
    skip_torch()
    from rich.padding import Padding
    from rich.text import Text

    from atomsieve.structures.formats.registry import FORMATS

    screen = console()
    for row in FORMATS.values():
        names = ", ".join((*row.endings, *row.patterns, *(f"{word}*" for word in row.beginnings)))
        written = "read and written" if row.sink is not None else "read"
        screen.print(Text.assemble((row.name, "bold"), f"  {names or 'by its content, or --format'}  ({written})"))
        about = row.about + (f"; cannot hold {row.lacks}" if row.lacks else "")
        about += f"; needs pip install 'atomsieve[{row.extra}]'" if row.extra else ""
        screen.print(Padding(Text(about), (0, 0, 0, 4)))
