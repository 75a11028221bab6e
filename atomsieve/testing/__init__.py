"""A public kit to test encoders and predictors with, for this package and for packages that extend it.

    from atomsieve.testing import EncoderTests, PredictorTests

    class TestMyEncoder(EncoderTests):
        encoder = "mine"                       # found by its entry point, see atomsieve.models.registry

    class TestMyPredictor(PredictorTests):
        def make_predictor(self):
            return MyPredictor(...)

pytest collects the inherited tests. Each of them calls one function of `atomsieve.testing.encoders` or
`atomsieve.testing.predictors`, which may be called alone; a failed check raises AssertionError. Nothing here imports
pytest. `AWKWARD_CELLS` holds structures that break neighbour lists, by name.
"""

from atomsieve.testing.cells import AWKWARD_CELLS
from atomsieve.testing.encoder_tests import EncoderTests
from atomsieve.testing.predictors import PredictorTests

__all__ = ["AWKWARD_CELLS", "EncoderTests", "PredictorTests"]
