"""Models inside Triton that take graphs."""
