"""Training: the loop, its schedules, checkpoints and logs."""

from kmaskrcnn.errors import TrainingError

__all__ = ["TrainingError"]
