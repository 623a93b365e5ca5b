"""Training: the loop, its schedules, checkpoints and logs."""

from kmaskrcnn.training.errors import TrainingError

__all__ = ["TrainingError"]
