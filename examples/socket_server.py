"""Relax a structure with forces from another process: python examples/socket_server.py --ensemble gfm/.

ASE's SocketIOCalculator is the server, on a UNIX socket. This script starts socket_client.py, which evaluates the
ensemble. The same client works with i-PI and other servers of the protocol. Each row of socket.txt holds the energy
(eV) and the largest differences of forces and stress from those computed directly in this process.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from ase.build import bulk
from ase.calculators.socketio import SocketIOCalculator
from ase.io import write
from ase.optimize import BFGS

from atomsieve.calculators import GFMCalculator

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--ensemble", type=Path, required=True)
parser.add_argument("--head")
parser.add_argument("--steps", type=int, default=5)
given = parser.parse_args()

atoms = bulk("Cu", cubic=True)
atoms.rattle(0.05, seed=0)
species = Path("socket_species.xyz")
write(species, atoms)
name = f"atomsieve_{os.getpid()}"
client = [
    sys.executable,
    str(Path(__file__).with_name("socket_client.py")),
    "--ensemble",
    str(given.ensemble),
    "--species",
    str(species),
    "--unixsocket",
    name,
]
client += ["--head", given.head] if given.head else []

direct = GFMCalculator(given.ensemble, given.head)
rows = []
with SocketIOCalculator(unixsocket=name, timeout=120) as server:
    process = subprocess.Popen(client)
    atoms.calc = server
    optimizer = BFGS(atoms, logfile=None)

    def compare() -> None:
        """Record the largest differences between the socket's numbers and the direct ones."""
        forces = np.abs(atoms.get_forces() - direct.get_property("forces", atoms)).max()
        stress = np.abs(atoms.get_stress() - direct.get_property("stress", atoms)).max()
        rows.append((atoms.get_potential_energy(), forces, stress))

    optimizer.attach(compare)
    optimizer.run(fmax=1e-4, steps=given.steps)
process.wait(timeout=60)
np.savetxt("socket.txt", rows)
print(f"{len(rows)} evaluations over /tmp/ipi_{name}: forces differ by at most {max(r[1] for r in rows):.1e} eV/A")
