"""What Keras sees of the model: its keywords, its loops, saving and loading."""

import dataclasses
import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from kmaskrcnn import ConfigError, MaskRCNN, ModelConfig
from kmaskrcnn.model import LOSSES
from tests.processes import run_python


def test_the_keywords_are_the_fields_of_model_config():
    parameters = inspect.signature(MaskRCNN).parameters
    others = {"seed": 0, "name": None, "dtype": None}
    assert {name: p.default for name, p in parameters.items()} == dataclasses.asdict(ModelConfig()) | others
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values())
    types = {field.name: field.type for field in dataclasses.fields(ModelConfig)}
    assert {name: parameters[name].annotation for name in types} == types


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_clases": 3}, "no keyword 'num_clases'; did you mean 'num_classes'"),
        ({"zzz": 3}, "no keyword 'zzz'$"),
        ({"num_classes": 3, "learning_rate": 3.0}, "'learning_rate' is a setting of training"),
    ],
)
def test_a_wrong_keyword_is_refused_and_the_near_one_named(settings, words):
    with pytest.raises(TypeError, match=words) as error:
        MaskRCNN(**settings)
    assert isinstance(error.value, ConfigError)


def test_keras_settings_that_the_network_is_not_written_for_are_refused(tiny_settings):
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ConfigError, match="channels_first"):
            MaskRCNN(**tiny_settings)
    finally:
        keras.config.set_image_data_format("channels_last")
    keras.config.set_floatx("float64")
    try:
        with pytest.raises(ConfigError, match="floatx='float64'"):
            MaskRCNN(**tiny_settings)
    finally:
        keras.config.set_floatx("float32")
    with pytest.raises(ConfigError, match="dtype='float64'"):
        MaskRCNN(dtype="float64", **tiny_settings)


def test_keras_still_has_the_hook_that_the_step_over_devices_takes():
    # TrainStep replaces it: were it no longer called, gradients would be summed over the replicas twice.
    module = inspect.getmodule(keras.optimizers.SGD._all_reduce_sum_gradients)
    assert "self._all_reduce_sum_gradients(grads_and_vars)" in inspect.getsource(module)


def test_labels_in_a_batch_do_not_keep_predict_from_detections(tiny_model, batch):
    found = tiny_model(batch, training=False)
    alone = tiny_model({name: batch[name] for name in ("images", "image_shapes")}, training=False)
    for name in alone:
        np.testing.assert_array_equal(found[name], alone[name])


def test_the_loops_of_keras(tiny_model, batch):
    tiny_model.compile("sgd", run_eagerly=True)  # no graph is traced, which would take most of the test
    data = tf.data.Dataset.from_tensors(batch)
    found = tiny_model.predict(data, verbose=0)
    assert found["boxes"].shape == (2, 20, 4)
    scores = tiny_model.evaluate(data, verbose=0, return_dict=True)
    assert scores.keys() == {*LOSSES, "loss"} and all(np.isfinite(v) for v in scores.values())
    endless = data.repeat()
    endless.steps_per_epoch = 2
    history = tiny_model.fit(endless, epochs=2, validation_data=data, verbose=0).history
    assert len(history["val_mask"]) == 2 and tiny_model.optimizer.iterations == 4
    bad = batch | {"classes": np.where(batch["classes"] > 0, 4, 0).astype(np.int32)}
    for call in (tiny_model.fit, tiny_model.evaluate):
        with pytest.raises(ValueError, match="num_classes=3"):
            call(tf.data.Dataset.from_tensors(bad))
    for call in (tiny_model.train_on_batch, tiny_model.test_on_batch):
        with pytest.raises(ValueError, match="num_classes=3"):
            call(bad)
    with pytest.raises(NotImplementedError, match=r"use kmaskrcnn\.export\.saved_model\.export_saved_model"):
        tiny_model.export("somewhere")


@pytest.mark.parametrize("order", ["import keras, kmaskrcnn", "import kmaskrcnn, keras"])
def test_a_keras_file_loads_in_a_process_that_only_imports_the_package(tiny_model, batch, tmp_path, order):
    tiny_model.backbone.trainable = False
    tiny_model.compile(keras.optimizers.SGD(0.05, momentum=0.9), run_eagerly=True)
    tiny_model.train_on_batch(batch)
    tiny_model.save(tmp_path / "model.keras")
    code = (
        f"{order}, sys; m = keras.models.load_model(sys.argv[1]); o = m.optimizer; "
        "print(type(m).__name__, float(o.learning_rate), int(o.iterations), len(m.trainable_variables))"
    )
    run = run_python("-c", code, tmp_path / "model.keras")
    rate = float(tiny_model.optimizer.learning_rate)
    assert run.stdout.split() == ["MaskRCNN", str(rate), "1", str(len(tiny_model.trainable_variables))], run.stderr


def test_a_frozen_layer_of_one_stage_of_a_cascade_comes_back(tiny_settings):
    """The stages have layers of the same names."""
    model = MaskRCNN(**tiny_settings, cascade_ious=(0.5, 0.6, 0.7))
    count = len(model.trainable_variables)
    model.cascade.heads[0].fcs[0].trainable = False
    again = MaskRCNN.from_config(model.get_config())
    paths = [[variable.path for variable in one.trainable_variables] for one in (model, again)]
    assert paths[0] == paths[1] and len(paths[0]) == count - 2
    assert [head.fcs[0].trainable for head in again.cascade.heads] == [False, True]
    model.cascade.heads[1].trainable = False
    again = MaskRCNN.from_config(model.get_config())
    assert [v.path for v in again.trainable_variables] == [v.path for v in model.trainable_variables]
