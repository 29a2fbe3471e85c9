"""The class for a Ray Data pipeline of your own: ``trtbatch.ray.Predictor``."""

from trtbatch.deployment.predictor import Predictor

__all__ = ["Predictor"]
