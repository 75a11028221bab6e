"""Other packages beside ours: each in an environment of its own, on the same files, for the same processor time."""
