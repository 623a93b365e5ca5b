"""What training and those who look at it from outside agree on: exceptions, exit codes, the name of the lock."""

# A signal ended the run after its state was saved.
EXIT_INTERRUPTED = 75
# Another worker died, or nothing went on: start all workers again.
EXIT_RESTART = 76
# The file in a model folder that says who trains there.
LOCK = "training.lock"


class TrainingError(RuntimeError):
    """Training cannot start or go on. The message names the folder, the flag or the images, and what to do."""


class WorkerLost(TrainingError):
    """Another worker died or stalled: nothing is wrong here, and starting all of them again goes on."""
