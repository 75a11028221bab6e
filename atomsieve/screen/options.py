"""Options of a screening run, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass

from atomsieve.errors import UsageError, unknown
from atomsieve.gfm.backends import check_backend
from atomsieve.models.precision import PRECISIONS, check_precision
from atomsieve.screen.results.columns import AUTOMATIC, COLUMNS, PLAIN, rankable

ALL_HEADS = "all"
MIXED = "auto"
"""Name of the learned mixture of heads, as in `atomsieve.uncertainty.head_mixture`; servers list it as a head."""
FORCE_SPREAD = ("auto", "all", "top", "none")
OVERSIZED = ("cpu", "mark")


def parse_cascade(text: str, members: int | None) -> tuple[str, str]:
    """Return the two precisions of `cheaper:better`; `members` is the number that screen first, None for all.

    Raises
    ------
    UsageError
        for an unknown precision, or a pair that saves nothing.
    """
    first, colon, then = text.partition(":")
    if not colon:
        raise UsageError(f"cascade {text!r} names no pair; write cheaper:better, e.g. bf16:fp32")
    for name in (first, then):
        check_precision(name, "precision of the cascade")
    if PRECISIONS.index(first) < PRECISIONS.index(then) or (first == then and members is None):
        raise UsageError(
            f"cascade {text!r} saves nothing: the first precision must be the cheaper one (bf16, fp32, fp64); the same "
            "twice goes with --cascade-members"
        )
    return first, then


@dataclass(frozen=True)
class ScreenOptions:
    """Options of one run.

    Attributes
    ----------
    head : name of a head, `auto` (the folder's learned mixture of heads), `all`, or None for the folder's default.
    precision : fp64, fp32 or bf16.
    backend : native, onnx, torchscript, pt2, or auto (the fastest that was checked on this machine).
    device : auto, cpu, cuda or cuda:N. `auto` spreads the ranks of a machine over its GPUs.
    top, by, descending, where : how many rows the table of best rows has, the column that ranks them (smallest first
        unless descending; "auto" takes the energy above the hull where the heads have references, else what
        `results.stability.choose_ranking` says), and the expression over the columns that a row must fulfil. They
        decide `top.csv` only.
    forces : store the forces too. members : store the energy of each member, from which errors of energies above a
        hull are computed; an ensemble of one has none, and a run that is continued keeps to what it began with.
    force_spread : which rows get the spread of forces of a shallow ensemble, which costs a multiple of all else: `all`,
        `top` (those of top.csv), `none`; `auto` is `top`, or `none` with an exported backend. Deep ensembles give all.
    limit : screen the first so many structures.
    chunk_size : structures per chunk; None takes a size from the size of the input.
    max_atoms, max_edges : budget of one batch (edges are estimated); None takes the device's default.
    threads : CPU threads of each process that runs on the CPU. They decide the last bits of a result, so a run is
        continued with the same number; more processes are faster than more threads.
    max_structure_atoms : a structure above it gets the status TOO_LARGE.
    copies : folder on each node with copies of some parts of the input; they are read there, by these ranks first.
    commit_seconds : results are made durable at least this often.
    local : a folder on a disk of each node where results are kept first; None writes to the results folder at once.
    collect_seconds : with `local`, results are brought to the results folder this often, and at the end.
    cascade : "cheaper:better", e.g. "bf16:fp32": all in the cheaper precision (`precision` is set to it), then in the
        better one the rows that could be among the best or are undecided by `where`. Not with `local`.
    cascade_members : members that screen first in a cascade; None takes all.
    cascade_safety : the error bound of a cascade is the largest measured error times this.
    oversized : for a structure that alone is too large for the GPU: `cpu` computes it there, `mark` gives it the
        status OUT_OF_MEMORY.
    metrics : a file of metrics for Prometheus; with `{rank}` in its name every rank writes one.
    retry_poisoned : compute chunks with POISONED structures once more.
    keep_converted : keep the dataset that a file was converted into; without it later questions to the results that
        need structures convert the file again.
    grace : seconds that SIGTERM leaves to finish the current chunk; after them the run leaves after the batch.
    """

    head: str | None = None
    precision: str = "fp32"
    backend: str = "native"
    device: str = "auto"
    top: int = 1000
    by: str = AUTOMATIC
    descending: bool = False
    where: str | None = None
    forces: bool = False
    members: bool = True
    force_spread: str = "auto"
    limit: int | None = None
    chunk_size: int | None = None
    max_atoms: int | None = None
    max_edges: int | None = None
    threads: int = 1
    max_structure_atoms: int = 20_000
    copies: str | None = None
    commit_seconds: float = 2.0
    local: str | None = None
    collect_seconds: float = 600.0
    cascade: str | None = None
    cascade_members: int | None = None
    cascade_safety: float = 2.0
    oversized: str = "cpu"
    metrics: str | None = None
    grace: float = 60.0
    retry_poisoned: bool = False
    keep_converted: bool = True

    def __post_init__(self) -> None:
        if self.cascade is not None and self.by == AUTOMATIC:
            object.__setattr__(self, "by", PLAIN)
        if self.by in COLUMNS:  # any other is looked for when the input is open
            rankable(self.by)
        self._check_cascade()
        check_precision(self.precision)
        check_backend(self.backend)
        if self.force_spread not in FORCE_SPREAD:
            raise unknown("force-spread", self.force_spread, FORCE_SPREAD)
        if self.collect_seconds < 0:
            raise UsageError(f"collect-every must be at least 0, got {self.collect_seconds}")
        if self.oversized not in OVERSIZED:
            raise unknown("oversized", self.oversized, OVERSIZED)
        if self.top < 0:
            raise UsageError(f"top must be at least 0, got {self.top}")
        if not self.grace >= 0:
            raise UsageError(f"grace must be at least 0 seconds, got {self.grace}")
        for name in ("limit", "chunk_size", "max_atoms", "max_edges", "threads", "max_structure_atoms"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name.replace('_', '-')} must be at least 1, got {value}")

    def _check_cascade(self) -> None:
        """Check the options of a cascade; `precision` becomes that of the first pass."""
        if self.cascade is None:
            if self.cascade_members is not None:
                raise UsageError("cascade-members goes with cascade; give e.g. --cascade bf16:fp32, or leave it out")
            return
        first, then = parse_cascade(self.cascade, self.cascade_members)
        if self.precision not in ("fp32", first, then):
            raise UsageError(f"precision {self.precision!r} with cascade {self.cascade!r}, which names both; omit one")
        if self.by not in COLUMNS:
            raise UsageError(
                f"a cascade cannot rank by {self.by!r}, which is no column of rows.npy; rank by one of them"
            )
        if self.cascade_members is not None and self.cascade_members < 1:
            raise UsageError(f"cascade-members must be at least 1, got {self.cascade_members}")
        if not 1 <= self.cascade_safety < float("inf"):
            raise UsageError(f"cascade-safety must be at least 1, got {self.cascade_safety}")
        if self.local is not None:
            raise UsageError("cascade with local: it reads all rows again, which no node has; leave out one of them")
        object.__setattr__(self, "precision", first)

    def budget(self, usual: tuple[int, int]) -> tuple[int, int]:
        """Return the budget of one batch, atoms and edges; `usual` is taken where nothing was asked for."""
        atoms, edges = usual
        return self.max_atoms or atoms, self.max_edges or edges
