"""SGD with momentum as the published recipes have it."""

from __future__ import annotations

import keras
from keras import ops

from kmaskrcnn.ops.tensor import Tensor


class SGD(keras.optimizers.SGD):
    """velocity = momentum velocity + gradient; weight -= rate velocity (torch, Caffe2; Goyal et al. 2017, equation 9).

    Keras has the rate inside of the velocity, so that during a warm-up its steps are those of some ten steps earlier,
    and after a drop of the rate too large for as long (the paper's remark 3).
    """

    def update_step(self, gradient: Tensor, variable: Tensor, learning_rate: Tensor) -> None:
        if not self.momentum:
            super().update_step(gradient, variable, learning_rate)
            return
        velocity = self.momentums[self._get_variable_index(variable)]
        momentum, rate, gradient = (ops.cast(x, variable.dtype) for x in (self.momentum, learning_rate, gradient))
        if keras.backend.backend() == "tensorflow":
            _apply(variable, velocity, gradient, momentum, rate)
            return
        self.assign(velocity, ops.add(ops.multiply(velocity, momentum), gradient))
        self.assign_sub(variable, ops.multiply(velocity, rate))


def _apply(variable: Tensor, velocity: Tensor, gradient: Tensor, momentum: Tensor, rate: Tensor) -> None:
    """The same in one operation, which writes in place, where single ones make an array each."""
    import tensorflow as tf

    variable, velocity = (v.value if isinstance(v, keras.Variable) else v for v in (variable, velocity))
    tf.raw_ops.ResourceApplyMomentum(
        var=variable.handle, accum=velocity.handle, lr=rate, grad=gradient, momentum=momentum, use_locking=True
    )
