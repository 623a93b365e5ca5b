"""What the processes of `run_program` have imported. They are forks, so nothing may have run TensorFlow yet."""

from kmaskrcnn.quiet import quiet_tensorflow

quiet_tensorflow()

import kmaskrcnn.export.saved_model  # noqa: E402
import kmaskrcnn.training.trainer  # noqa: E402
import kmaskrcnn.weights.convert  # noqa: E402, F401
