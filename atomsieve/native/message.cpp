// PaiNN message kernels.
