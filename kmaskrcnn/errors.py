"""The exceptions that a user can act on, and the exit codes of a run that can go on."""

# A signal ended the run after its state was saved.
EXIT_INTERRUPTED = 75
# Another worker died, or nothing went on: start all workers again.
EXIT_RESTART = 76
# The file in a model folder that says who trains there.
LOCK = "training.lock"


class ConfigError(ValueError):
    """An unknown or impossible setting. The message names the setting and what it accepts."""


class UnknownSetting(ConfigError, TypeError):
    """A setting of no group; also a TypeError, as Python raises it for a keyword that a function does not have."""


class TrainingError(RuntimeError):
    """Training cannot start or continue. The message names the folder, the flag or the images, and what to do."""


class WorkerLost(TrainingError):
    """Another worker died or stalled: nothing is wrong here, and starting all of them again resumes the run."""


class DataError(ValueError):
    """Input data that cannot be used. The message has one line per problem, with the file and the record."""

    def __init__(self, message: str):
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Text that any terminal takes: control characters and what is no Unicode as escapes."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number of things in words: 1 image, 2 images, 3 classes."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


class Flaw(ValueError):
    """What is wrong with one record: `code` is a name in `data.sets.defects.DEFECTS`, the message what was found."""

    def __init__(self, code: str, detail: str):
        super().__init__(detail)
        self.code = code


class WeightsError(ValueError):
    """A weight file that is missing, damaged, unsafe or of another network. The message names file and tensor."""


def reason(error: BaseException | str) -> str:
    """The words of a library's exception, or a name in a file, in one short line for a message of ours."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyError) or not text:
        text = f"{type(error).__name__} {text}".strip()
    return text if len(text) <= 200 else f"{text[:200]}..."
