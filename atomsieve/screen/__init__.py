"""The screening engine: candidates in, ranked rows with uncertainty out, over MPI, resumable.

The package can be called: `atomsieve.screen("candidates.bp", "gfm/", top=100)` is `run_screen` with these options.
`run_screen`, `ScreenOptions` and `open_results` are imported from here on first use.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from atomsieve.screen.finish import ScreenResult
    from atomsieve.screen.options import ScreenOptions
    from atomsieve.screen.results.record import open_results
    from atomsieve.screen.run import run_screen

__all__ = ["ScreenOptions", "open_results", "run_screen"]

_HOMES = {"ScreenOptions": "options", "open_results": "results.record", "run_screen": "run"}


class _Screen(ModuleType):
    """The package as a verb."""

    def __call__(
        self,
        candidates: str | Path,
        ensemble: str | Path,
        *,
        out: str | Path | None = None,
        overwrite: bool = False,
        console: Console | None = None,
        **options: Any,
    ) -> ScreenResult:
        """Screen every structure of a file with an ensemble folder, or continue a run that was interrupted.

        options : the attributes of `atomsieve.screen.options.ScreenOptions`, and for a file that is no dataset those of
            `atomsieve.structures.conversion.read_options.ReadOptions`; the other parameters and the errors are those of
            `atomsieve.screen.run.run_screen`.
        """
        from dataclasses import fields

        from atomsieve.errors import unknown
        from atomsieve.screen.options import ScreenOptions
        from atomsieve.screen.run import run_screen
        from atomsieve.structures.conversion.read_options import ReadOptions

        of_files = {field.name for field in fields(ReadOptions)}
        known = [*(field.name for field in fields(ScreenOptions)), *of_files]
        for name in options:
            if name not in known:
                raise unknown("option", name, known)
        reading = ReadOptions(**{name: value for name, value in options.items() if name in of_files})
        chosen = ScreenOptions(**{name: value for name, value in options.items() if name not in of_files})
        return run_screen(candidates, ensemble, chosen, out=out, overwrite=overwrite, reading=reading, console=console)


sys.modules[__name__].__class__ = _Screen


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
