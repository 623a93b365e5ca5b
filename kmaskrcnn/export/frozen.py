"""The network with its weights as constants, folded once: for a SavedModel that answers sooner."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
from tensorflow.python.grappler import tf_optimizer

from kmaskrcnn.model import MaskRCNN
from kmaskrcnn.ops.tensor import Tensor

_IMAGES, _SHAPES = "images", "image_shapes"


Network = Callable[[Tensor, Tensor], dict[str, Tensor]]


def inference_of(model: MaskRCNN) -> Network:
    """The model's inference as a function of images (B, H, W, 3) and image_shapes (B, 2)."""
    return lambda images, shapes: model({_IMAGES: images, _SHAPES: shapes}, training=False)


def freeze(model: MaskRCNN, pixels: tf.DType) -> Network:
    """As `inference_of`, without variables.

    What depends on weights alone, such as kernels times the scale of their normalization, is computed here, and
    TensorFlow keeps constant kernels in the order in which oneDNN reads them. Variable ones it hands over as they are
    where the batch is one image, and with AVX2 oneDNN has no fast convolution for these.

    Args:
        model: with its weights.
        pixels: type of the images.
    """
    specs = (tf.TensorSpec((None, None, None, 3), pixels, _IMAGES), tf.TensorSpec((None, 2), tf.int32, _SHAPES))
    whole = tf.function(inference_of(model), autograph=False)
    concrete = whole.get_concrete_function(*specs)
    constant = convert_variables_to_constants_v2(concrete, lower_control_flow=False)
    names = [tensor.name for tensor in constant.inputs], [tensor.name for tensor in constant.outputs]
    graph = _fold(constant.graph, *names)
    folded = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph, name=""), [])
    pruned = folded.prune(*([folded.graph.get_tensor_by_name(name) for name in side] for side in names))
    keys = sorted(concrete.structured_outputs)

    def network(images: Tensor, shapes: Tensor) -> dict[str, Tensor]:
        return dict(zip(keys, pruned(images, shapes), strict=True))

    return network


def _fold(graph: tf.Graph, inputs: list[str], outputs: list[str]) -> tf.compat.v1.GraphDef:
    """The graph with what is constant computed."""
    meta = tf.compat.v1.train.export_meta_graph(graph=graph, graph_def=graph.as_graph_def(add_shapes=True))
    kept = meta_graph_pb2.CollectionDef()
    kept.node_list.value.extend([*inputs, *outputs])
    meta.collection_def["train_op"].CopyFrom(kept)
    config = config_pb2.ConfigProto()
    config.graph_options.rewrite_options.optimizers.extend(["function", "constfold"])
    config.graph_options.rewrite_options.meta_optimizer_iterations = 1
    folded = tf_optimizer.OptimizeGraph(config, meta)
    # What only has to have run before the outputs, each kernel as it was before it was scaled, is pruned without these.
    constants = {f"^{node.name}" for node in folded.node if node.op == "Const"}
    for node in folded.node:
        read = [name for name in node.input if name not in constants]
        del node.input[:]
        node.input.extend(read)
    # The bodies of loops have changed, and this process has theirs under the same names already.
    names = {function.signature.name: f"{function.signature.name}_folded" for function in folded.library.function}
    for function in folded.library.function:
        function.signature.name = names[function.signature.name]
    bodies = (function.node_def for function in folded.library.function)
    for node in itertools.chain(folded.node, *bodies):
        node.attr.pop("_gradient_op_type", None)  # there is nothing to train, and a SavedModel would want the gradient
        for value in node.attr.values():
            for called in [value.func] if value.HasField("func") else value.list.func:
                called.name = names.get(called.name, called.name)
    return folded
