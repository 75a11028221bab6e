"""Log of a run: JSON lines, TensorBoard files if it is installed, and a live table on the console."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

log = logging.getLogger(__name__)

COLUMNS = ("time", "epoch", "step", "lr", "loss", "energy", "force", "validation", "struct/s", "left")
SHOWN_ROWS = 8


def format_clock(seconds: float) -> str:
    """Write seconds as h:mm:ss."""
    whole = max(int(seconds), 0)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


class RunLog:
    """Writes `log.jsonl` in `folder` (appending, so a resumed run continues it) and shows a table on `console`.

    Only the first rank makes one with a folder; the others use `RunLog(None)`, which is silent.
    """

    def __init__(self, folder: Path | None, console: Console | None = None, tensorboard: bool = False) -> None:
        self.console = console if folder is not None else None
        self._file = None
        self._board: Any = None
        self._live: Any = None
        self._rows: list[tuple[str, ...]] = []
        self._last_plain = 0.0
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "log.jsonl").open("a")
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                log.info("TensorBoard is absent (pip install 'atomsieve[train]'); log.jsonl has the same numbers")
            else:
                self._board = SummaryWriter(str(folder / "tensorboard"))

    def __enter__(self) -> RunLog:
        if self.console is not None and self.console.is_terminal:
            from rich.live import Live

            self._live = Live(self._table(), console=self.console, refresh_per_second=2, transient=False)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)
            self._live = None
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()

    @property
    def active(self) -> bool:
        """True if anything is recorded."""
        return self._file is not None

    def record(self, kind: str, step: int, **values: Any) -> None:
        """Append one line: the kind of event, its step and its numbers."""
        if self._file is None:
            return
        self._file.write(json.dumps({"kind": kind, "time": round(time.time(), 2), "step": step, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in _numbers(values):
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def show(self, row: dict[str, str], *, important: bool) -> None:
        """Show a row of the live table; without a terminal, important rows are printed, others every half minute."""
        if self.console is None:
            return
        cells = tuple(row.get(name, "") for name in COLUMNS)
        if self._live is not None:
            if self._rows and not self._rows[-1][COLUMNS.index("validation")]:
                self._rows.pop()
            self._rows = [*self._rows, cells][-SHOWN_ROWS:]
            self._live.update(self._table())
        elif important or time.monotonic() - self._last_plain > 30:
            self._last_plain = time.monotonic()
            said = "  ".join(f"{name} {cell}" for name, cell in zip(COLUMNS, cells, strict=True) if cell)
            self.console.print(said, highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        from rich.table import Table

        table = Table(box=None, pad_edge=False, caption="losses in units of the sources' own label sizes")
        for name in COLUMNS:
            table.add_column(name, justify="right")
        for cells in self._rows:
            table.add_row(*cells)
        return table


def _numbers(values: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Return the numbers in nested values, with names joined by `/`."""
    out: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            out += _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, list | tuple):
            out += _numbers({str(k): v for k, v in enumerate(value)}, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            out.append((f"{prefix}{name}", float(value)))
    return out
