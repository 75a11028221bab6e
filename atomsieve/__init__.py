"""AtomSieve: train ensembles of multi-head graph foundation models of atoms and screen candidates with them."""

__version__ = "0.1.0"
