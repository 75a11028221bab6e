"""After a screening: duplicates, the convex hull, structures to label next, relaxations."""
