"""Predictor: the one way to get numbers out of a gfm/ folder."""

from atomsieve.predict.outside import Outside
from atomsieve.predict.prediction import Prediction
from atomsieve.predict.predictor import Predictor
from atomsieve.predict.status import Status

__all__ = ["Outside", "Prediction", "Predictor", "Status"]
