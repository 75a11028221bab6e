"""These tests need no torch: load ADIOS2 without it."""

from atomsieve.structures.dataset.bp5 import import_lightly

import_lightly()
