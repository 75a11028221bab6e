"""How a conversion is done: a plan of pieces, each converted by one process and recorded, and one dataset of all.

`plan` divides the input by what it is, never by how many processes there are; `piece` converts one piece into parts of
its own; `records` remembers pieces, so that an interrupted conversion goes on; `workers` runs them in processes;
`finish` puts them together.
"""
