"""Every setting of the model, the data, the training and the evaluation: default, help and range, written once.

The command-line flags (`kmaskrcnn.programs.flags`), the keywords of `MaskRCNN`, the `config.json` beside the
checkpoints and the reference page all derive from these fields, so field names are unique over all groups.
`kmaskrcnn.config` puts the groups together and checks them.
"""

from kmaskrcnn.settings.data import DataConfig
from kmaskrcnn.settings.evaluation import EvalConfig
from kmaskrcnn.settings.model import ModelConfig
from kmaskrcnn.settings.train import TrainConfig

__all__ = ["DataConfig", "EvalConfig", "ModelConfig", "TrainConfig"]
