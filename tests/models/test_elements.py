"""Places in the periodic table, and embeddings that start from them."""

import numpy as np
import pytest
from ase.data import atomic_numbers

from atomsieve.models.elements import MAX_NUMBER, element_embedding, element_features, place
from atomsieve.models.layers import Seeds


@pytest.mark.parametrize(
    ("symbol", "expected"),
    [
        ("H", (1, 1, 0)),
        ("He", (18, 1, 0)),
        ("C", (14, 2, 0)),
        ("Cl", (17, 3, 0)),
        ("Sc", (3, 4, 0)),
        ("Cu", (11, 4, 0)),
        ("Xe", (18, 5, 0)),
        ("Ba", (2, 6, 0)),
        ("La", (3, 6, 1)),
        ("Lu", (3, 6, 15)),
        ("Hf", (4, 6, 0)),
        ("Au", (11, 6, 0)),
        ("U", (3, 7, 4)),
        ("Og", (18, 7, 0)),
    ],
)
def test_places_in_the_table(symbol, expected):
    assert place(atomic_numbers[symbol]) == expected


def likeness(table, a, b):
    x, y = table[atomic_numbers[a]], table[atomic_numbers[b]]
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def test_like_elements_start_alike_and_none_are_the_same():
    assert np.allclose(element_features().mean(0), 0)
    embedding = element_embedding(64, Seeds([1, 2])).detach().numpy()
    assert embedding.shape == (2, MAX_NUMBER + 1, 64)
    for table in embedding:
        assert table[1:].std() == pytest.approx(1.0, abs=0.1)
        for a, b, other in (("Na", "K", "Cl"), ("Nb", "Ta", "O"), ("La", "Ce", "Zn"), ("Br", "I", "Fe")):
            assert likeness(table, a, b) > 0.1 + likeness(table, a, other)
        assert len(np.unique(table[1:], axis=0)) == MAX_NUMBER
    assert not np.allclose(embedding[0], embedding[1])
