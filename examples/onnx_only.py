"""Run an exported ensemble with onnxruntime alone: python examples/onnx_only.py model.onnx structure.cif [head].

The file holds weights, model code and metadata, so the script needs none of them from atomsieve. It uses atomsieve only
to read structures and to build the neighbour table; any other program that fills these arrays works too.
"""

import json
import sys

import ase.io
import numpy as np
import onnxruntime

from atomsieve.graphs import build_graph
from atomsieve.graphs.table import table_arrays
from atomsieve.structures import StructureBatch

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
facts = session.get_modelmeta().custom_metadata_map
heads = json.loads(facts["heads"])
head = sys.argv[3] if len(sys.argv) > 3 else facts["default_head"]
if head not in heads:
    raise SystemExit(f"error: head {head!r}; name one of {', '.join(heads)} as the third argument")

batch = StructureBatch.from_ase([ase.io.read(sys.argv[2])])
graph = build_graph(batch, float(facts["cutoff"]), max_neighbors=json.loads(facts["max_neighbors"]))
wanted = [slot.name for slot in session.get_inputs()]
arrays = {
    "numbers": batch.numbers,
    "positions": batch.positions,
    "cell": batch.cell,
    "structure": batch.structure_of_atom,
    "head": np.array([heads.index(head)]),
    "charge": batch.charge,
    "spin": batch.spin,
    **table_arrays(graph.neighbors, batch.n_atoms, reverse="reverse" in wanted),
}
lacking = [name for name in wanted if arrays[name] is None]
if lacking:
    raise SystemExit(f"error: this model needs the structure's {' and '.join(lacking)}; give them in the file")
names = [slot.name for slot in session.get_outputs()]
found = dict(zip(names, session.run(names, {name: arrays[name] for name in wanted}), strict=True))

print(f"head {head}, {facts['precision']}, cutoff {facts['cutoff']} Angstrom, {batch.n_atoms} atoms")
print(f"energy {found['energy'][0]:.6f} eV, spread of members {found['energy_std'][0]:.6f} eV")
if "forces" in found:
    print(f"largest force {np.linalg.norm(found['forces'], axis=1).max():.6f} eV/Angstrom")
