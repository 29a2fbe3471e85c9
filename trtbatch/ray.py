"""Export the class for custom Ray Data pipelines: ``trtbatch.ray.Predictor``."""

from trtbatch.deployment.predictor import Predictor

__all__ = ["Predictor"]
