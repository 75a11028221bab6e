"""`screen hull`: formation energies and energies above the convex hull."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atomsieve.cli.common import CHOICE, IN_OUT, OverwriteOption, ResultsArgument, console, show_table
from atomsieve.cli.groups import expand_groups
from atomsieve.cli.screen.options import SHOWN, MovedEnsembleOption, SelectionOptions

if TYPE_CHECKING:
    from atomsieve.followup.hull import Hull
    from atomsieve.followup.hull_references import References


@expand_groups(without=("pareto",))
def hull(
    results: ResultsArgument,
    *,
    references: Annotated[
        list[Path],
        typer.Option(
            "--references",
            "-r",
            help="Results of the same ensemble and head, or structures, which are "
            "computed now; may be given more than once.",
            rich_help_panel=IN_OUT,
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Table to write: .csv or .parquet.", rich_help_panel=IN_OUT)
    ] = Path("hull.csv"),
    k: Annotated[
        int | None,
        typer.Option(
            "--top", "-k", min=1, help="Only so many of the best rows.", rich_help_panel=CHOICE, show_default=False
        ),
    ] = None,
    selection: SelectionOptions,
    ensemble: MovedEnsembleOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Compare rows with reference phases of the same ensemble and head: formation energy, energy above the hull."""
    from atomsieve.errors import AtomSieveError
    from atomsieve.followup import hull as hulls
    from atomsieve.followup.hull_references import all_members, entries_of, gather
    from atomsieve.models.precision import PRECISIONS
    from atomsieve.screen.results.caveats import describe_mixed_precisions
    from atomsieve.screen.results.formulas import read_formulas
    from atomsieve.screen.results.record import open_results
    from atomsieve.screen.results.screened_input import open_screened_input
    from atomsieve.screen.selection.select import one_head, select

    opened = open_results(results)
    hulls.check_output(out, overwrite, opened)
    if not opened.complete:
        raise AtomSieveError(f"{results} is not complete; run the screening again first")
    name = one_head(opened, selection.head)
    rows = select(opened, selection.with_top(k, name)).rows
    if not len(rows):
        raise AtomSieveError(f"no row of {results} has a result and fulfils --where; there is nothing to compare")
    used = all_members(opened, rows, f"give --where \"precision == '{opened.labels.precisions[-1]}'\"")
    known = gather(opened, name, min(used, key=PRECISIONS.index), references, ensemble)
    with open_screened_input(opened) as reader:
        entries = entries_of(reader, rows)
    found = hulls.energies(entries, known.entries)
    formulas = read_formulas(opened, rows)
    table = hulls.columns(
        rows, [formulas[p] for p in rows["position"].tolist()], name, opened.labels.precisions, found, known.entries
    )
    hulls.write(table, opened, out, overwrite=overwrite)
    said = []
    if charged := len(rows) - int(entries.usable.sum()):
        said.append(f"{charged:,} rows are charged: a charged structure has no place on a hull")
    if len(known.precisions | used) > 1:
        said.append(f"references in {', '.join(sorted(known.precisions))}, rows in {', '.join(sorted(used))}")
    if line := describe_mixed_precisions(opened, [rows]):
        said.append(line)
    _show(table, found, known, [*said, str(out)])


def _show(table: dict[str, list[Any]], found: Hull, known: References, more: list[str]) -> None:
    import numpy as np

    from atomsieve.followup.hull import ROUNDING, symbol
    from atomsieve.text import counted

    screen = console()
    above = found.above[np.isfinite(found.above)]
    shown = [name for name in table if name not in ("head", "precision", "missing", "natoms", "energy_per_atom")]
    lines = [
        [f"{v:.4f}" if isinstance(v, float) else str(v) for v in line]
        for line in zip(*(table[name][: min(SHOWN, len(above))] for name in shown), strict=True)
    ]
    if lines:  # rows without a hull come last
        show_table(
            screen, f"the {len(lines)} of {len(table['id']):,} rows lowest above the hull, eV/atom", tuple(shown), lines
        )
    said = [
        f"references: {len(known.entries):,} entries of head {table['head'][0]}, {known.failed:,} without result, "
        f"{known.outside:,} outside of its domain",
    ]
    if lines:
        said.append(
            f"{counted(len(above), 'row')} in {counted(found.systems, 'chemical system')}: "
            f"{np.count_nonzero(above <= 0):,} on or below the hull of the references (within {ROUNDING:g} eV/atom), "
            f"{np.count_nonzero(above <= 0.05):,} at most 0.05 eV/atom above it"
        )
    if lacking := sorted({z for row in found.missing for z in row}):
        n = sum(bool(row) for row in found.missing)
        which = f"{counted(n, 'row')} {'has' if n == 1 else 'have'} no hull" if lines else "no row has a hull"
        said.append(
            f"{which}: no reference is the element {', '.join(symbol(z) for z in lacking)}; add structures of these "
            "elements to --references"
        )
    for line in (*said, *more):
        screen.print(line, highlight=False, soft_wrap=True)
