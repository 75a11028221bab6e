"""Files of other programs that train potentials, and of the data sets they are trained on."""
