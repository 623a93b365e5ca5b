"""The one exception of the weight readers and importers."""


class WeightsError(ValueError):
    """A weight file that is missing, damaged, unsafe or of another network. The message names file and tensor."""
