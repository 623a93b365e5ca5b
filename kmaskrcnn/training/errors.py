"""The exception of training that a user can mend."""


class TrainingError(RuntimeError):
    """Training cannot start or go on. The message names the folder, the flag or the images, and what to do."""
