"""Dataset folders and other BP5 directories: written, checked, read by global index."""
