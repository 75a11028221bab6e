"""Chunks that end their process: retried in isolation, and given the status POISONED if they do it again."""
