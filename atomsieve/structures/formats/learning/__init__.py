"""Files of other programs that train potentials, and of the data sets they are trained on."""

from atomsieve.structures.formats.learning import deepmd, hdf5, mtp, n2p2, npz, pyg_file

ROWS = (deepmd.ROW, mtp.ROW, n2p2.ROW, hdf5.ROW, npz.ROW, pyg_file.ROW)
