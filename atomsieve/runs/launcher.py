"""The launcher that started this process, as its environment variables describe it.

This is the only file that knows the variables of launchers. Launchers nest: `torchrun` runs inside a step of `srun`,
and `mpirun` in a Slurm job starts its daemons by `srun`. The variables of the outer ones stay in the environment, so
the families are asked from the innermost to the outermost, and the first that left variables decides.

Sources: Open MPI 5 manual, 11.1 "Environment variables set for MPI applications"; MPICH's Hydra; Cray PALS; PMIx
standard; srun(1) and sbatch(1), "OUTPUT ENVIRONMENT VARIABLES"; slurm.h (numbers of special steps); torchrun's manual.

Imports nothing but the standard library: the entry points of the commands need it before anything else is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that torch.distributed needs to connect by itself; only where all are set, torchrun started the process."""

SPECIAL_STEPS = 0xFFFFFFF0
"""Slurm's step numbers from here on are no parallel steps: the batch script, an interactive shell, the extern step."""


@dataclass(frozen=True)
class Launch:
    """How this process was started; numbers that the environment does not hold are None.

    Attributes
    ----------
    launcher : `none`, `torchrun`, `Open MPI`, `MVAPICH`, `MPICH` (also of Intel and Cray), `PMIx` or `srun`.
    rank, size : number of this process among all of the job (0-based), and how many there are.
    local_rank, local_size : the same among the processes of this machine.
    pmix : the launcher offers its ranks PMIx and nothing else; an MPI library without PMIx aborts the process.
    """

    launcher: str = "none"
    rank: int | None = None
    size: int | None = None
    local_rank: int | None = None
    local_size: int | None = None
    pmix: bool = False

    @property
    def at_least(self) -> int:
        """Number of processes that were started for certain."""
        return self.size or max(self.local_size or 1, (self.rank or 0) + 1)

    @property
    def is_alone(self) -> bool:
        """True if this process certainly is the only one: no MPI library needs to be asked."""
        return self.launcher == "none" or self.size == 1


@dataclass(frozen=True)
class _Family:
    """Variables of one kind of launcher, in the order of preference."""

    name: str
    rank: Sequence[str]
    size: Sequence[str]
    local_rank: Sequence[str] = ()
    local_size: Sequence[str] = ()


def _mpi_family(name: str, prefix: str) -> _Family:
    return _Family(name, *((f"{prefix}_{what}",) for what in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")))


_TORCHRUN = _Family("torchrun", ("RANK",), ("WORLD_SIZE",), ("LOCAL_RANK",), ("LOCAL_WORLD_SIZE",))
_FAMILIES = (
    _mpi_family("Open MPI", "OMPI_COMM_WORLD"),
    _mpi_family("MVAPICH", "MV2_COMM_WORLD"),
    _mpi_family("MVAPICH", "MVP_COMM_WORLD"),
    _Family(  # Hydra sets MPI_LOCAL*, Cray's PALS sets PMI_LOCAL_* and PALS_*, srun --mpi=pmi2 sets neither
        "MPICH",
        ("PMI_RANK", "PALS_RANKID"),
        ("PMI_SIZE",),
        ("MPI_LOCALRANKID", "PMI_LOCAL_RANK", "PALS_LOCAL_RANKID"),
        ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE", "PALS_LOCAL_SIZE"),
    ),
    _Family("PMIx", ("PMIX_RANK",), ("PMIX_SIZE",)),  # srun --mpi=pmix and prterun leave the rank alone
)


def detect_launcher(env: Mapping[str, str]) -> Launch:
    """Return how the process with this environment was started."""
    if all(env.get(name) for name in TORCHRUN):
        return _read_family(_TORCHRUN, env)
    step = _read_slurm_step(env)
    for family in _FAMILIES:
        found = _read_family(family, env)
        if (found.rank, found.size, found.local_rank, found.local_size) != (None,) * 4:
            return _merge_step(found, step)
    return step


def _read_family(family: _Family, env: Mapping[str, str]) -> Launch:
    rank = _first_number(env, family.rank)
    size = _first_number(env, family.size) or None
    local_size = _first_number(env, family.local_size) or None
    local_rank = _first_number(env, family.local_rank)
    return Launch(family.name, rank, size, local_rank, local_size, pmix=family.name == "PMIx")


def _first_number(env: Mapping[str, str], names: Sequence[str]) -> int | None:
    return next((int(env[name]) for name in names if env.get(name, "").isdecimal()), None)


def _read_slurm_step(env: Mapping[str, str]) -> Launch:
    """Return the place of this process in a parallel step of srun; a process outside of one is alone.

    A batch script and the shell of salloc have SLURM_NTASKS, and the script has SLURM_PROCID=0, but each is one
    process: those numbers describe the allocation.
    """
    number = env.get("SLURM_STEP_ID", env.get("SLURM_STEPID", ""))
    counted = _first_number(env, ("SLURM_STEP_NUM_TASKS",))
    if number and not (number.isdecimal() and int(number) < SPECIAL_STEPS):
        return Launch()
    if not number and not counted and not env.get("SLURM_STEP_TASKS_PER_NODE"):
        return Launch()
    size = counted or _first_number(env, ("SLURM_NTASKS", "SLURM_NPROCS")) or None
    rank, local_rank = _first_number(env, ("SLURM_PROCID",)), _first_number(env, ("SLURM_LOCALID",))
    return Launch("srun", rank, size, local_rank, _tasks_of_node(env))


def _tasks_of_node(env: Mapping[str, str]) -> int | None:
    """Return how many tasks of the step this node runs, from a list such as `16(x3),2`: 16 on three nodes, then 2."""
    counts: list[int] = []
    for part in env.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        tasks, _, times = part.partition("(x")
        if not tasks.isdecimal():
            return None
        repeated = times.rstrip(")")
        counts += [int(tasks)] * (int(repeated) if repeated.isdecimal() else 1)
    node = _first_number(env, ("SLURM_NODEID",)) or 0
    return counts[node if node < len(counts) else 0] or None


def _merge_step(found: Launch, step: Launch) -> Launch:
    """Return the place in the Slurm step if srun itself started this process as a rank of MPI, else `found`.

    `srun --mpi=pmi2` sets PMI_RANK and PMI_SIZE as Slurm's own; `srun --mpi=pmix` sets PMIX_RANK and no size. Under
    mpirun the step is that of its daemons and has other numbers.
    """
    same_size = found.size is None or found.size == step.size
    if step.launcher == "none" or found.rank is None or found.rank != step.rank or not same_size:
        return found
    if found.launcher not in ("MPICH", "PMIx") or found.local_rank is not None:
        return found
    return replace(step, pmix=found.pmix)
