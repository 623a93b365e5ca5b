"""The one exception of the weight readers and importers."""


class WeightsError(ValueError):
    """A weight file that is missing, damaged, unsafe or of another network. The message names file and tensor."""


def reason(error: BaseException | str) -> str:
    """The words of a library's exception, or a name in a file, in one short line for a message of ours."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyError) or not text:
        text = f"{type(error).__name__} {text}".strip()
    return text if len(text) <= 200 else f"{text[:200]}..."
