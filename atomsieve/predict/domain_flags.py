"""Reasons why a structure lies outside of a head's training domain."""

from __future__ import annotations

from enum import IntFlag


class Outside(IntFlag):
    """Reasons why a structure is outside of a head's domain; 0 is inside."""

    UNSEEN_ELEMENT = 1
    UNSEEN_PAIR = 2
    SHORT_CONTACT = 4
    FAR_FROM_TRAINING = 8
    UNSEEN_CHARGE_OR_SPIN = 16
    UNUSUAL_DENSITY = 32
    UNUSUAL_COORDINATION = 64

    @property
    def meaning(self) -> str:
        """One line for people, of a single reason."""
        return _MEANINGS[self]


_MEANINGS = {
    Outside.UNSEEN_ELEMENT: "holds an element that the head was not trained on",
    Outside.UNSEEN_PAIR: "two elements are bonded that were never seen bonded in training",
    Outside.SHORT_CONTACT: "two atoms are closer than the head has seen atoms like them",
    Outside.FAR_FROM_TRAINING: "an atom's surroundings lie far from all in training, in the encoder's feature space",
    Outside.UNSEEN_CHARGE_OR_SPIN: "its charge or spin multiplicity is beyond those in training, or does not fit its "
    "number of electrons",
    Outside.UNUSUAL_DENSITY: "atoms have more or fewer neighbours than in training, for their elements",
    Outside.UNUSUAL_COORDINATION: "atoms have more or fewer bonds than in training, for their elements",
}
