"""Read the results of a screening from Python: python examples/read_results.py demo/results."""

import sys

import numpy as np

from atomsieve.screen import open_results
from atomsieve.screen.results.formulas import read_formulas
from atomsieve.screen.selection.best import best_rows

results = open_results(sys.argv[1])
rows = results.rows()  # memory-mapped, so the file may be larger than memory
ok = rows["status"] == 0
print(f"{len(rows):,} rows, {np.count_nonzero(ok):,} of them OK; columns: {', '.join(rows.dtype.names)}")

sure = best_rows(results, 5, "energy_per_atom", where="in_domain and max_force < 0.5")
formulas = read_formulas(results, sure)
for row in sure:
    print(
        f"{formulas[int(row['position'])]:12s} {row['energy_per_atom']:8.4f} eV/atom, "
        f"largest force {row['max_force']:.3f} eV/Angstrom"
    )
