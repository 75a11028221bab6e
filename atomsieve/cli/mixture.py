"""`atomsieve mixture gfm/ --data train.bp`: learn which heads a composition belongs to, for `--head auto`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atomsieve.cli.common import IN_OUT, MODEL, QuietOption, console, find_gfm, show_table


def app(
    folder: Annotated[Path, typer.Argument(help="The ensemble folder (gfm/).", show_default=False)],
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            help="Structures whose sources are called like the heads, as trained on, or HEAD=FILE for a file that "
            "is no dataset; may be given several times.",
            rich_help_panel=IN_OUT,
            show_default=False,
        ),
    ],
    inputs: Annotated[
        str,
        typer.Option(
            "--inputs",
            help="What the weights depend on: fractions of the elements, or counts of atoms.",
            rich_help_panel=MODEL,
        ),
    ] = "fractions",
    heads: Annotated[
        str | None,
        typer.Option(
            "--heads",
            help="Mix these alone, e.g. of one kind of theory: a,b,c. [default: all in the data]",
            rich_help_panel=MODEL,
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the fit.", rich_help_panel=MODEL)] = 0,
    quiet: QuietOption = False,
) -> None:
    """Fit how much each head counts for a composition, and write it into the folder.

    Afterwards `--head auto` mixes the heads by these weights. Weights, heads and calibration stay as they are, but the
    ensemble has a new id: finish screenings that are under way before.
    """
    from atomsieve.evaluation.fit_mixture import fit_folder_mixture

    folder = find_gfm(folder, console(stderr=True, quiet=quiet))
    found = fit_folder_mixture(folder, data, inputs, seed, None if heads is None else heads.split(","))
    screen = console(quiet=quiet)
    about = found.about
    rows = [[name, f"{about['of_head'].get(name, 0):,}"] for name in found.mixed]
    show_table(screen, "Mixture", ("head", "structures"), rows)
    screen.print(
        f"cross entropy of held-out compositions {about['cross_entropy']:.3f}, of equal weights {about['uniform']:.3f}",
        highlight=False,
    )
    screen.print(
        f"wrote {folder}/mixture.safetensors; the ensemble has a new id now: a run that is not finished "
        "must be begun anew, and verbs that compute again for older results refuse them",
        highlight=False,
        soft_wrap=True,
    )
