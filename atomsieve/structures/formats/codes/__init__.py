"""Readers of the outputs of simulation codes, one file and one row of the registry each."""

from atomsieve.structures.formats.codes import (
    aims,
    castep,
    cp2k_output,
    cp2k_xyz,
    espresso,
    gpaw,
    lammps_data,
    lammps_dump,
    ml_ab,
    orca,
    outcar,
    pdb,
    trajectories,
    vasprun,
    xdatcar,
)

ROWS = (
    vasprun.ROW,
    outcar.ROW,
    xdatcar.ROW,
    ml_ab.ROW,
    espresso.ROW,
    cp2k_xyz.ROW,
    cp2k_output.ROW,
    aims.ROW,
    gpaw.ROW,
    orca.ROW,
    castep.ROW,
    lammps_dump.ROW,
    lammps_data.ROW,
    pdb.ROW,
    trajectories.XTC_ROW,
    trajectories.DCD_ROW,
)
