"""JSON of databases: pymatgen, MatPES, MPtrj, Matbench-Discovery, JARVIS, OPTIMADE, ASE; told apart by their keys."""

from atomsieve.structures.formats.records.read import ROW

__all__ = ["ROW"]
