"""Names of the files in a results folder. No other room of the package knows them.

    results/
      run.json           settings of the run: input, ensemble, options, columns with units, chunk and batch rules
      rows.npy           one record per structure and head, in input order
      carried.arrow      what the input states of each structure (ids, any context), if it does
      joined.arrow       columns that were joined from tables, with joined.json: their names and origin
      forces.npy         [N,3] float32 eV/Angstrom ([N,H,3] for H heads), if asked for
      members.npy        [rows,K] float32 eV/atom: energy of each member minus that of the row, unless left out
      references/        reference sets of the heads, from which columns about stability are computed
      top.csv            the best rows
      summary.json       counts, rates, time per stage, versions
      run.log.jsonl      events with their time
      ledger/NNNNN.ledger  durable chunks, per rank
      cascade.json       rules, bounds and outcome of a precision cascade; cascade/NNNNN.notes the outcome of each chunk
      lock.json          while a run is active
      local.json         while results of `--local` lie on the nodes' own disks
      at_hand.bin        until the run is complete: the chunk that each rank is computing
      deaths.json        while chunks are suspected of having killed a rank: how often for each

The `.npy` files and `top.csv` have the same bytes for any number of ranks, and after an interruption. Every
chunk has a fixed place in them, so ranks write concurrently and nothing is assembled at the end. Until the last chunk
is durable the files are called `*.npy.part`: a name without `.part` promises that every row is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from atomsieve.runs.output_folder import OutputFolder


@dataclass(frozen=True)
class ResultsFolder(OutputFolder):
    """Names inside a results folder."""

    contents = "screening results"
    record_name = "run.json"

    run = property(lambda self: self.record)
    rows = property(lambda self: self.path / "rows.npy")
    forces = property(lambda self: self.path / "forces.npy")
    members = property(lambda self: self.path / "members.npy")
    carried = property(lambda self: self.path / "carried.arrow")
    references = property(lambda self: self.path / "references")
    joined = property(lambda self: self.path / "joined.arrow")
    joined_record = property(lambda self: self.path / "joined.json")
    top = property(lambda self: self.path / "top.csv")
    summary = property(lambda self: self.path / "summary.json")
    log = property(lambda self: self.path / "run.log.jsonl")
    ledger = property(lambda self: self.path / "ledger")
    bounds = property(lambda self: self.path / "cascade.json")
    cascade = property(lambda self: self.path / "cascade")
    local = property(lambda self: self.path / "local.json")
    at_hand = property(lambda self: self.path / "at_hand.bin")
    deaths = property(lambda self: self.path / "deaths.json")

    def is_ours(self) -> bool:
        """Return whether a screening run made this folder; one copied in part may lack run.json."""
        return self.run.is_file() or self.ledger.is_dir()

    def rank_ledger(self, rank: int) -> Path:
        """Return the ledger file that a rank appends to."""
        return Path(self.ledger / f"{rank:05d}.ledger")

    def ledgers(self) -> list[Path]:
        """Return the ledger files of all ranks, sorted by name."""
        return sorted(self.ledger.glob("*.ledger"))

    def list_folders(self) -> list[Path]:
        """Return the folder of reference sets."""
        return [self.references]

    def list_files(self) -> list[Path]:
        """Return the files of a run, run.json last; folders for files of single ranks stay."""
        arrays = [name for path in (self.rows, self.forces, self.members) for name in (partial_path(path), path)]
        small = [
            self.at_hand,
            self.deaths,
            self.bounds,
            self.carried,
            self.joined_record,
            self.joined,
            self.top,
            self.summary,
            self.log,
            self.local,
            self.run,
        ]
        return [*self.ledgers(), *arrays, *self.cascade.glob("*.notes"), *small]

    def list_own_names(self) -> set[str]:
        """Return no name: in a folder with neither run.json nor a ledger nothing counts as ours."""
        return set()


def partial_path(path: Path) -> Path:
    """Return the name of a file while it is not complete."""
    return path.with_name(path.name + ".part")
