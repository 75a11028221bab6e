"""Offer an ensemble to any program that uses the i-PI protocol: python examples/socket_client.py --ensemble gfm/.

The other program is the server: i-PI itself, or ASE (socket_server.py).
The client receives positions and cells over the socket and returns energy, forces and virial. The protocol does not
send the species, so pass them with --species: any file that ASE reads, with the atoms in the server's order.
Periodicity, total charge and multiplicity are those of that file too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ase.calculators.socketio import SocketClient
from ase.io import read

from atomsieve.calculators import GFMCalculator

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--ensemble", type=Path, required=True)
parser.add_argument("--head")
parser.add_argument("--precision", default="fp64")
parser.add_argument("--species", type=Path, required=True, help="file with the atoms")
parser.add_argument("--charge", type=float, help="total charge (e), in place of the file's")
parser.add_argument("--spin", type=float, help="multiplicity 2S+1, in place of the file's")
parser.add_argument("--unixsocket", help="name of a UNIX socket (/tmp/ipi_NAME)")
parser.add_argument("--host", default="localhost")
parser.add_argument("--port", type=int)
given = parser.parse_args()

atoms = read(given.species)
atoms.info |= {name: value for name in ("charge", "spin") if (value := getattr(given, name)) is not None}
atoms.calc = GFMCalculator(given.ensemble, given.head, given.precision)
where = {"unixsocket": given.unixsocket} if given.unixsocket else {"host": given.host, "port": given.port}
SocketClient(**where).run(atoms, use_stress=bool(atoms.pbc.all()))
