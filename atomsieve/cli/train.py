"""`atomsieve train config.yaml` and `atomsieve train init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atomsieve.cli.common import OverwriteOption, QuietOption, RunFirst

app = typer.Typer(
    cls=RunFirst,
    add_completion=False,
    no_args_is_help=True,
    help="Train an ensemble: `atomsieve train config.yaml`; `atomsieve train init` writes an example to start from.",
)


@app.command(hidden=True)
def run(
    config: Annotated[Path, typer.Argument(help="Training configuration (YAML).", show_default=False)],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a key, e.g. --set optimizer.lr=1e-3 (may be repeated).", show_default=False),
    ] = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train an ensemble; run again after an interruption, it continues. Also under torchrun or mpirun."""
    from atomsieve.cli.common import console
    from atomsieve.structures.conversion.ready import check_input
    from atomsieve.train.config import load_config

    chosen = load_config(config, settings or [])
    for item in chosen.data:  # before torch is loaded
        check_input(item.path, None if item.convert is None else item.convert.format)
    from atomsieve.train.run import train

    train(chosen, console(quiet=quiet), overwrite=overwrite)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("train.yaml"),
    overwrite: OverwriteOption = False,
) -> None:
    """Write a commented example configuration."""
    from atomsieve.cli.common import console
    from atomsieve.errors import UsageError
    from atomsieve.train.example import example_config

    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists; give another name or --overwrite")
    path.write_text(example_config())
    console().print(f"wrote {path}; edit `data`, then: atomsieve train {path}", highlight=False, soft_wrap=True)
