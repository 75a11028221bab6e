"""Chunks that end their process: computed again in isolation, and set aside if they do it again."""
