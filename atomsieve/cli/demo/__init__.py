"""`atomsieve demo`: the whole path on labels made on the spot."""
