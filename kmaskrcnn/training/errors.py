"""The exceptions of training that a user can mend, and the exit codes of a run that can go on."""

# A signal ended the run after its state was saved.
EXIT_INTERRUPTED = 75
# Another worker died, or nothing went on: start all workers again.
EXIT_RESTART = 76


class TrainingError(RuntimeError):
    """Training cannot start or go on. The message names the folder, the flag or the images, and what to do."""


class WorkerLost(TrainingError):
    """Another worker died or stalled: nothing is wrong here, and starting all of them again goes on."""
