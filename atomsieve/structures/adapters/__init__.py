"""Arrays of a batch from objects of ASE and pymatgen, and back; where they state charge and multiplicity."""
