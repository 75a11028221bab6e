"""A source: a dataset at one level of theory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SourceInfo:
    """A dataset at one level of theory. Its index in the list of sources is the value of the field `head`."""

    name: str
    level_of_theory: str = ""
