"""Names of model folders: ~ is the home folder, and an address is refused before anything is made."""

import pytest

from kmaskrcnn.config import Config, ConfigError
from kmaskrcnn.folders import local_folder
from kmaskrcnn.model_folder import load_model, prepare_directory, saved_dtype
from kmaskrcnn.results.labels import Labels

LABELS = Labels(("a",), (1,))


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    config = Config().replace(model_dir="~/runs/x", num_classes=1, dtype="mixed_bfloat16")
    assert prepare_directory("~/runs/x", config, LABELS) == tmp_path / "home" / "runs" / "x"
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert saved_dtype("~/runs/x") == "mixed_bfloat16"
    with pytest.raises(ConfigError, match="nothing was saved there yet"):  # it is found again, and has no weights
        load_model("~/runs/x")
    with pytest.raises(ConfigError, match="no such home folder"):
        local_folder("~nobody-of-this-name/x")


@pytest.mark.parametrize("name", ["gs://bucket/run", "s3://bucket/run", "ram://run", "hdfs://a/b", "gs:/bucket", ""])
def test_an_address_is_refused_and_nothing_is_made(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        prepare_directory(name, Config().replace(model_dir=name), LABELS)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["runs/a:b", "C:/runs", "lr=[0.1]", "a*", "10:30"])
def test_other_names_are_names(name):
    assert str(local_folder(name)) == name
