"""Training by a constant kernel, and networks that train as if theirs were."""

from mechfeat.ntk.dynamics.kernel import KernelDynamics, Time
from mechfeat.ntk.dynamics.model import TrainingPrediction, linearize, predict_training

__all__ = ["KernelDynamics", "Time", "TrainingPrediction", "linearize", "predict_training"]
