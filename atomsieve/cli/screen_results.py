"""Questions to the results of a screening: how far it is, the best rows, structures to label, other formats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atomsieve.cli.common import (
    CHOICE,
    IN_OUT,
    WORK,
    ByOption,
    DescendingOption,
    EachOption,
    HeadOption,
    OverwriteOption,
    ParetoOption,
    PerOption,
    ResultsArgument,
    RowHeadOption,
    SymprecOption,
    WhereOption,
    console,
    wide,
)
from atomsieve.text import counted

if TYPE_CHECKING:
    from atomsieve.screen.results.record import Results

SYMPREC = 0.01  # Angstrom, as in atomsieve.screen.selection.groups
SHOWN = 20  # rows that `screen top` shows unless asked otherwise


def status(
    results: ResultsArgument,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every byte with its checksum.", rich_help_panel=WORK)
    ] = False,
) -> None:
    """Say how far a run is, how fast, and what became of its structures; also while it runs."""
    from atomsieve.errors import DataError
    from atomsieve.screen.results.record import open_results
    from atomsieve.screen.results.status import format_status_lines, read_status
    from atomsieve.screen.results.tables import status_table

    opened = open_results(results)
    found = read_status(opened, verify=verify)
    screen = console()
    for line in format_status_lines(found):
        screen.print(line, highlight=False, soft_wrap=True)
    if found.status:
        screen.print(status_table(found.status, opened.labels))
    if found.wrong is not None:
        raise DataError(found.wrong)


def top(
    results: ResultsArgument,
    k: Annotated[int, typer.Option("-k", "--top", min=1, help="How many rows.", rich_help_panel=CHOICE)] = SHOWN,
    by: ByOption = "energy_per_atom",
    descending: DescendingOption = False,
    where: WhereOption = None,
    head: RowHeadOption = None,
    per: PerOption = None,
    each: EachOption = 1,
    pareto: ParetoOption = None,
    symprec: SymprecOption = SYMPREC,
) -> None:
    """Show the best rows, exactly, over all rows; of a run at work, over those that are durable."""
    from atomsieve.screen.results.caveats import describe_mixed_precisions
    from atomsieve.screen.results.formulas import read_formulas
    from atomsieve.screen.results.record import open_results
    from atomsieve.screen.results.tables import top_table
    from atomsieve.screen.selection.best import count_without_result
    from atomsieve.screen.selection.pareto import objectives
    from atomsieve.screen.selection.row_filter import restrict_to_head
    from atomsieve.screen.selection.select import Selection, select

    opened = open_results(results)
    chosen = select(
        opened,
        Selection(
            top=None if pareto else k,
            by=by,
            descending=descending,
            where=where,
            head=head,
            per=per,
            each=each,
            symprec=symprec,
            pareto=pareto,
        ),
    )
    rows = chosen.rows[:k]
    order = "largest" if descending else "smallest"
    note = "" if opened.complete else " (the run is not complete)"
    if pareto:
        shown: str | list[str] = [name for name, _ in objectives(pareto)]
        title = f"{len(rows)} of {len(chosen.rows):,} rows that no other beats in {' and '.join(shown)}{note}"
    else:
        shown, among = by, f", at most {each} of each {per}" if per else ""
        title = f"{counted(len(rows), 'row')} with the {order} {by}{among}{note}"
    # a formula column beside formulas as groups would say the same
    names = {} if per == "formula" else read_formulas(opened, rows)
    groups = None if chosen.groups is None or per is None else (per.replace("-", " "), chosen.groups)
    wide(console()).print(top_table(rows, opened.labels, names, title, shown, groups))
    if not pareto and (line := _zeros(opened, by, head, where)):
        console().print(line, highlight=False, soft_wrap=True)
    if line := describe_mixed_precisions(opened, [rows]):
        console().print(line, highlight=False, soft_wrap=True)
    asked = None if where is None else restrict_to_head(opened, where, head)
    if asked is not None and len(rows) < k and (without := count_without_result(opened, asked)):
        console().print(f"{without:,} more rows fulfil --where but have no result; `screen export` writes them too")


def _zeros(results: Results, by: str, head: str | None, where: str | None) -> str | None:
    """Return a line for people if energies of several heads were ranked together."""
    from atomsieve.screen.results.caveats import describe_mixed_heads

    return None if head is not None else describe_mixed_heads(results.labels, by, where)


def pick(
    results: ResultsArgument,
    n: Annotated[int, typer.Option("--n", "-n", help="How many structures.", rich_help_panel=CHOICE)] = 100,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File to write (.extxyz); a .csv comes beside.", rich_help_panel=IN_OUT)
    ] = Path("picked.extxyz"),
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            help="sigma_energy, energy_std (both per atom), sigma_force, max_force_std or distance. "
            "[default: sigma_energy, or energy_std without calibration]",
            rich_help_panel=CHOICE,
            show_default=False,
        ),
    ] = None,
    where: WhereOption = None,
    per_formula: Annotated[
        int | None,
        typer.Option(
            "--per-formula", help="At most so many of one reduced formula.", rich_help_panel=CHOICE, show_default=False
        ),
    ] = None,
    head: HeadOption = None,
    candidates: Annotated[
        int,
        typer.Option(
            "--candidates", help="Compare this many times n rows, the most uncertain.", rich_help_panel=CHOICE
        ),
    ] = 20,
    ensemble: Annotated[
        Path | None,
        typer.Option(
            "--ensemble",
            "-e",
            help="Folder of the ensemble that screened, if it was moved.",
            rich_help_panel=IN_OUT,
            show_default=False,
        ),
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Pick uncertain and different structures to label next, and write them for a first-principles code."""
    from atomsieve.followup.label_candidates import pick as choose
    from atomsieve.followup.label_candidates import targets, write_picked
    from atomsieve.screen.results.caveats import describe_mixed_precisions
    from atomsieve.screen.results.record import open_results

    opened = open_results(results)
    targets(out, overwrite, opened)
    picked = choose(
        opened, n, by=by, where=where, per_formula=per_formula, head=head, candidates=candidates, ensemble=ensemble
    )
    path, table = write_picked(picked, opened, out, overwrite=overwrite)
    screen = console()
    screen.print(
        f"{len(picked.rows):,} of {picked.good:,} rows picked by {picked.by}, head {picked.head}, among the "
        f"{picked.candidates:,} most uncertain: {path}, {table}",
        highlight=False,
        soft_wrap=True,
    )
    if line := describe_mixed_precisions(opened, [picked.rows]):
        screen.print(line, highlight=False, soft_wrap=True)
    if len(picked.rows) < n:
        screen.print(
            f"fewer than --n {n}: the candidates hold no more with --per-formula {per_formula}; raise it, or "
            f"--candidates (now {candidates})",
            highlight=False,
            soft_wrap=True,
        )


def export(
    ctx: typer.Context,
    results: ResultsArgument,
    out: Annotated[
        Path,
        typer.Argument(
            help="Rows: .csv, .parquet, .npz. Structures: .extxyz, .bp, .db, .cif.",
            show_default=False,
        ),
    ],
    where: WhereOption = None,
    k: Annotated[
        int | None, typer.Option("--top", "-k", min=1, help="Only the best rows, best first.", rich_help_panel=CHOICE)
    ] = None,
    by: ByOption = "energy_per_atom",
    descending: DescendingOption = False,
    head: RowHeadOption = None,
    per: PerOption = None,
    each: EachOption = 1,
    pareto: ParetoOption = None,
    symprec: SymprecOption = SYMPREC,
    overwrite: OverwriteOption = False,
) -> None:
    """Write rows as a table (csv, parquet, npz), or their structures with the results (extxyz, bp, db, cif)."""
    from atomsieve.errors import UsageError
    from atomsieve.screen.results.caveats import describe_mixed_precisions
    from atomsieve.screen.results.export import export as write
    from atomsieve.screen.results.record import open_results, require_complete
    from atomsieve.screen.selection.best import best_rows, iter_matching_rows
    from atomsieve.screen.selection.row_filter import restrict_to_head
    from atomsieve.screen.selection.select import Selection, select

    opened, rows = open_results(results), None
    require_complete(opened)
    if pareto and k:
        raise UsageError(f"--pareto gives all rows of the front; leave out --top {k}")
    if not (k or per or pareto):
        for name, given in (("by", f"--by {by}"), ("descending", "--descending" if descending else "--ascending")):
            if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE":
                raise UsageError(f"{given} goes with --top or --per; all rows come in input order: leave it out")
    selection = Selection(
        top=k, by=by, descending=descending, where=where, head=head, per=per, each=each, symprec=symprec, pareto=pareto
    )
    asked, texts = restrict_to_head(opened, where, head), None
    if per or pareto:
        chosen = select(opened, selection)
        rows = chosen.rows
        texts = {per.replace("-", "_"): chosen.groups} if per and chosen.groups is not None else None
    elif k is not None:
        rows = best_rows(opened, k, by, descending=descending, where=asked)
    n = write(
        opened, out, iter_matching_rows(opened, asked) if rows is None else [rows], texts=texts, overwrite=overwrite
    )
    console().print(f"{counted(n, 'row')} written to {out}", highlight=False, soft_wrap=True)
    if k is not None and (line := _zeros(opened, by, head, where)):
        console().print(line, highlight=False, soft_wrap=True)
    if line := describe_mixed_precisions(opened, iter_matching_rows(opened, asked) if rows is None else [rows]):
        console().print(line, highlight=False, soft_wrap=True)
