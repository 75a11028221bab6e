"""Energy of a run, from the counters of GPUs (NVML) and processors (RAPL). Without a counter it is None, never 0.

The counters of a processor include other programs and idle cores: they are right for a machine that does nothing else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

POWERCAP = Path("/sys/class/powercap")
GPU, CPU = "gpu", "cpu"
MOST_WATTS = 500.0
"""Of one processor package: in a shorter time than this takes to its end a counter does not wrap twice unseen."""


@dataclass
class Counter:
    """One counter of energy, read now and then; it may wrap unseen between two distant readings.

    Attributes
    ----------
    kind : `cpu` or `gpu`. name : for people. read : returns joules since some time in the past; may raise OSError.
    wraps : joules at which the counter starts again from 0, None if it does not.
    joules : counted since the first reading.
    """

    kind: str
    name: str
    read: Callable[[], float]
    wraps: float | None = None
    joules: float = 0.0
    last: float | None = None
    read_at: float = 0.0

    def update(self) -> bool:
        """Read the counter; it must be read more often than it wraps. Return False where it cannot be read."""
        try:
            now = self.read()
        except (OSError, ValueError) as error:
            log.debug("energy counter %s: %s", self.name, error)
            return False
        before, self.read_at = self.read_at, time.monotonic()
        if self.last is not None:
            if self.wraps and (self.read_at - before) * MOST_WATTS > self.wraps:
                log.debug("energy counter %s: not read for %.0f s", self.name, self.read_at - before)
                return False
            step = now - self.last
            if step < 0 and self.wraps:
                step += self.wraps
            self.joules += max(step, 0.0)  # one that was set to zero tells nothing of this step
        self.last = now
        return True


@dataclass
class EnergyMeter:
    """The counters of one machine; `update` between batches, `report` at the end.

    Attributes
    ----------
    counters : those that can be read. unknown : kinds that take energy here and cannot be read.
    """

    counters: list[Counter]
    unknown: tuple[str, ...] = ()
    lost: set[str] = field(default_factory=set)

    def update(self) -> None:
        """Read every counter."""
        for counter in self.counters:
            if not counter.update():
                self.lost.add(counter.kind)

    def report(self) -> dict[str, Any]:
        """Return joules per kind (None where unknown) and the names of the counters, as plain data."""
        self.update()
        unknown = {*self.unknown, *self.lost}
        kinds = {c.kind for c in self.counters} | unknown
        joules = {
            kind: None if kind in unknown else sum(c.joules for c in self.counters if c.kind == kind)
            for kind in sorted(kinds)
        }
        return {"joules": joules, "counters": [c.name for c in self.counters]}


def meter(gpus: Iterable[str] = (), powercap: Path = POWERCAP) -> EnergyMeter:
    """Return a meter of this machine's processors and of the GPUs in use.

    gpus : their UUIDs, as `torch.cuda.get_device_properties(k).uuid` gives them.
    """
    names = list(gpus)
    processors, of_gpus = rapl_counters(powercap), nvml_counters(names) if names else []
    lacking = {CPU: not processors, GPU: len(of_gpus) < len(names)}
    found = EnergyMeter([*processors, *of_gpus], tuple(kind for kind, lacks in lacking.items() if lacks))
    found.update()
    return found


def rapl_counters(powercap: Path = POWERCAP) -> list[Counter]:
    """Return the counters of each processor package and of its memory; none where one of the packages is unreadable.

    The counters of cores and of the uncore are parts of the package's; memory is not. `psys` holds all of
    them and more, but few machines have it.
    """
    found = []
    for zone in sorted(powercap.glob("*-rapl:*")):
        try:
            name = (zone / "name").read_text().strip()
            if not (name.startswith("package") or name == "dram"):
                continue
            wraps = _microjoules(zone / "max_energy_range_uj")
            _microjoules(zone / "energy_uj")
        except (OSError, ValueError) as error:  # not readable but for root, on most systems
            log.debug("energy of %s cannot be read: %s", zone.name, error)
            return []
        found.append(Counter(CPU, f"{zone.name} ({name})", partial(_microjoules, zone / "energy_uj"), wraps))
    return found


def _microjoules(file: Path) -> float:
    return 1e-6 * int(file.read_text())


def nvml_counters(uuids: list[str]) -> list[Counter]:
    """Return the counters of GPUs; those that have none, or all where nvidia-ml-py is not there, are left out."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.debug("energy of GPUs: %s", error)
        return []
    found = []
    for uuid in uuids:
        name = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(name)
            _nvml_joules(pynvml, handle)
        except (OSError, pynvml.NVMLError) as error:
            log.debug("energy of %s: %s", name, error)
            continue
        found.append(Counter(GPU, name, partial(_nvml_joules, pynvml, handle)))
    return found


def _nvml_joules(pynvml: Any, handle: Any) -> float:
    try:
        return 1e-3 * float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    except pynvml.NVMLError as error:
        raise OSError(str(error)) from error


def total(reports: Iterable[dict[str, Any] | None], structures: int) -> dict[str, Any]:
    """Return the energy of a run from the reports of its machines (None from ranks that had no meter).

    A kind that one machine could not read is unknown as a whole.

    Returns
    -------
    dict with `joules` per kind, None where unknown; `machines`, `counters` that were read; and
    `joules_per_million_structures`, None unless every kind is known and structures were computed.
    """
    every = [r for r in reports if r is not None]
    kinds = sorted({kind for r in every for kind in r["joules"]})
    joules: dict[str, float | None] = {}
    for kind in kinds:
        found = [r["joules"][kind] for r in every if kind in r["joules"]]
        joules[kind] = None if any(j is None for j in found) else round(sum(found), 3)
    known = [j for j in joules.values() if j is not None]
    whole = bool(every) and len(known) == len(kinds) and structures > 0
    return {
        "joules": joules,
        "machines": len(every),
        "counters": sum(len(r["counters"]) for r in every),
        "joules_per_million_structures": round(1e6 * sum(known) / structures, 1) if whole else None,
    }


def format_energy(energy: dict[str, Any]) -> str:
    """Write the energy of a run in one line for people."""
    joules = energy["joules"]
    parts = [f"{kind.upper()} {'unknown' if j is None else f'{j:,.0f} J'}" for kind, j in joules.items()]
    rate = energy["joules_per_million_structures"]
    if rate is not None:
        return f"energy: {', '.join(parts)}; {rate:,.0f} J per million structures"
    if all(j is None for j in joules.values()):
        return "energy: unknown (no readable counters on this machine)"
    return f"energy: {', '.join(parts)}"
