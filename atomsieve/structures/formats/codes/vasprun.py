"""vasprun.xml of VASP: every ionic step, one at a time."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import IO, Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from atomsieve.errors import DataError
from atomsieve.structures.formats.base import Format
from atomsieve.structures.formats.codes.steps import ENDS_WITHIN, charge_of, judge
from atomsieve.structures.formats.codes.vasp_names import numbers_of
from atomsieve.structures.item import BadItem, Item, ReadRequest, open_with_progress
from atomsieve.structures.units import PRESSURE, Units

UNITS = Units("ev", "angstrom", "ev/angstrom", "kbar", None, -1, "format vasprun")
PARSED_BYTES = 1 << 18
BULKY = re.compile(rb"<(eigenvalues|dos|projected|dielectricfunction|kpoints|eigenvelocities)[ >]")
"""Elements that are cut out before the text is parsed: they are most of the file, and nothing of them is taken."""
LONGEST_TAG = 32


class _Header:
    """What stands before the steps: species, and the parameters that tell charge, pressure and convergence."""

    def __init__(self) -> None:
        self.numbers: NDArray[np.int64] | None = None
        self.parameters: dict[str, float] = {}
        self._types: list[tuple[int, float]] = []

    def read_atoms(self, element: ElementTree.Element) -> None:
        symbols = [(row[0].text or "").strip() for row in element.iterfind("array[@name='atoms']/set/rc")]
        self.numbers = numbers_of(symbols)
        for row in element.iterfind("array[@name='atomtypes']/set/rc"):
            self._types.append((int(row[0].text or ""), float(row[3].text or "")))

    def read_parameters(self, element: ElementTree.Element) -> None:
        for one in element.iter("i"):
            name = one.get("name", "").upper()
            if name in ("NELECT", "PSTRESS", "NELM", "EDIFF"):
                self.parameters[name] = float(one.text or "")

    @property
    def charge(self) -> float | None:
        """The total charge: electrons of the neutral atoms less NELECT."""
        if "NELECT" not in self.parameters or not self._types:
            return None
        counts, valences = zip(*self._types, strict=True)
        return charge_of(valences, counts, self.parameters["NELECT"])


def read_vasprun(request: ReadRequest) -> Iterator[Item | BadItem]:
    """Yield the ionic steps: the energy extrapolated to zero smearing, and the free energy that forces derive from.

    Raises
    ------
    DataError
        if the file is no vasprun.xml.
    """
    header, step = _Header(), 0
    parser: Any = ElementTree.XMLPullParser(["start", "end"])
    with open_with_progress(request.path) as (file, fraction):
        root: ElementTree.Element | None = None
        open_step = False
        for event, element in _events(parser, file, request):
            if root is None:
                root = element
                if root.tag != "modeling":
                    raise DataError(f"{request.path} is no vasprun.xml: it begins with <{root.tag}>")
            if event == "start":
                open_step = open_step or element.tag == "calculation"
                continue
            if element.tag == "atominfo":
                header.read_atoms(element)
            elif element.tag == "parameters":
                header.read_parameters(element)
            elif element.tag == "calculation":
                open_step = False
                step += 1
                yield _read_step(element, header, f"{request.path}: ionic step {step}", request)
                root.clear()
                request.tick(fraction())
        if open_step:
            yield BadItem(ENDS_WITHIN, f"{request.path}: ionic step {step + 1}")
        elif root is None or header.numbers is None:
            raise DataError(f"{request.path} is no whole vasprun.xml: it names no atoms")
        elif not step:
            yield BadItem("no ionic step in it", str(request.path))


def _events(parser: Any, file: IO[bytes], request: ReadRequest) -> Iterator[tuple[str, ElementTree.Element]]:
    """Yield events of a file that may end anywhere, as one of a run that was stopped does."""
    begun = False
    for data in _cut_bulk(file):
        parser.feed(data)
        try:
            for event in parser.read_events():  # raises the errors of `feed` too
                begun = True
                yield event
        except ElementTree.ParseError as error:
            if not begun:
                raise DataError(f"{request.path} is no vasprun.xml: {error}") from None
            return


def _cut_bulk(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the text without the bulky elements; it ends where a damaged compressed file ends."""
    text, end = b"", b""
    while True:
        try:
            data = file.read(PARSED_BYTES)
        except (EOFError, OSError):
            data = b""
        text += data
        out = []
        while True:
            if end:
                at = text.find(end)
                if at < 0:
                    text = text[-len(end) :]
                    break
                text, end = text[at + len(end) :], b""
            match = BULKY.search(text)
            if match is None:
                kept = len(text) - LONGEST_TAG if data else len(text)
                out.append(text[: max(kept, 0)])
                text = text[max(kept, 0) :]
                break
            out.append(text[: match.start()])
            text, end = text[match.start() :], b"</" + match[1] + b">"
        yield b"".join(out)
        if not data:
            return


def _read_step(element: ElementTree.Element, header: _Header, where: str, request: ReadRequest) -> Item | BadItem:
    try:
        return _parse_step(element, header, where, request)
    except (ValueError, TypeError, AttributeError) as error:  # a number that is none, or what every step has is missing
        return BadItem("not readable", where, f"{type(error).__name__}: {error}")


def _parse_step(element: ElementTree.Element, header: _Header, where: str, request: ReadRequest) -> Item | BadItem:
    if header.numbers is None:
        return BadItem("a step before the atoms are named", where)
    cell, scaled = (
        _rows(element, f"structure/{path}") for path in ("crystal/varray[@name='basis']", "varray[@name='positions']")
    )
    if cell is None or scaled is None or len(scaled) != len(header.numbers):
        return BadItem("positions or cell are missing", where)
    electronic = element.findall("scstep")
    if not electronic:
        return BadItem("no electronic steps: predicted by a force field that VASP learned", where)
    labels: dict[str, Any] = _read_energies(element, electronic[-1], header, abs(np.linalg.det(cell)))
    for name, key in (("forces", "forces"), ("stress", "stress")):
        rows = _rows(element, f"varray[@name='{key}']")
        if rows is not None:
            labels[name] = rows
    charge = header.charge
    info = {} if charge is None else {"charge": charge}
    full = np.array([True, True, True])
    item = Item(header.numbers, scaled @ cell, cell, full, where, info, labels, units=UNITS)
    most = header.parameters.get("NELM")
    if most is None or len(electronic) < most:
        return item
    last = [float(_text(one, "energy/i[@name='e_fr_energy']")) for one in electronic[-2:]]
    change = abs(last[-1] - last[0]) if len(last) == 2 else np.inf
    detail = f"{len(electronic)} electronic steps of NELM {most:.0f}, the last changed the energy by {change:.3g} eV"
    return judge(item, change < header.parameters.get("EDIFF", 0.0), request, detail)


def _read_energies(
    element: ElementTree.Element, last: ElementTree.Element, header: _Header, volume: float
) -> dict[str, float]:
    """Return both energies of a step.

    The energy of a step includes pressure times volume where PSTRESS is set, and its `e_0_energy` is not the one
    extrapolated to zero smearing; the last electronic step has the right difference, but lacks dispersion corrections.
    """
    free = float(_text(element, "energy/i[@name='e_fr_energy']"))
    free -= header.parameters.get("PSTRESS", 0.0) * PRESSURE["kbar"] * volume
    extrapolated, own = (float(_text(last, f"energy/i[@name='{key}']")) for key in ("e_0_energy", "e_fr_energy"))
    return {"energy": free + extrapolated - own, "free_energy": free}


def _text(element: ElementTree.Element, path: str) -> str:
    found = element.find(path)
    if found is None or not found.text:
        raise ValueError(f"{path} is missing")
    return found.text


def _rows(element: ElementTree.Element, path: str) -> NDArray[np.float64] | None:
    """Return rows of three numbers, None where the element is missing."""
    found = element.find(path)
    if found is None:
        return None
    return np.array([row.text.split() for row in found.iterfind("v") if row.text], np.float64).reshape(-1, 3)


def looks_like(head: bytes) -> bool:
    """Return True for the first bytes of a vasprun.xml."""
    return b"<modeling>" in io.BytesIO(head).read(400) and b"vasp" in head


ROW = Format(
    name="vasprun",
    about="vasprun.xml of VASP, every ionic step",
    endings=(),
    patterns=("vasprun*.xml",),
    read=read_vasprun,
    compressed=True,
    looks_like=looks_like,
    covers=("outcar", "xdatcar", "poscar"),
)
