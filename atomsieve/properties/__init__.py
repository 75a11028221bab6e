"""Properties of chosen structures: equation of state, elastic moduli, phonons, with the ensemble's spread on each.

`run.py` is the order of the work, `group.py` relaxes the structures of a group and calls the methods, one file each:
`equation_of_state.py`, `elasticity.py`, `phonons.py`. A method makes distorted structures of many parents at once,
`evaluation.py` evaluates them in batches, and pymatgen or phonopy turn the results of one parent into its property.
"""
