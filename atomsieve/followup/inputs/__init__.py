"""Input folders for first-principles codes: one for each chosen structure, at the level of theory of a head.

`write.py` makes folders and the table; `vasp.py`, `espresso.py` and `cp2k.py` write the input of one structure each.
"""
