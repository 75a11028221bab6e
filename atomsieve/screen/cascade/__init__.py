"""The precision cascade: all structures in a cheaper precision, then the rows that could matter in a better one."""
