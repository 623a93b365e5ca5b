"""Model folders on the Hugging Face Hub, with its library in place of its server."""

import pathlib
import sys
import types

import pytest

from kmaskrcnn.errors import WeightsError
from kmaskrcnn.weight_files import hub


@pytest.fixture
def library(tmp_path, monkeypatch):
    """What the library was asked, and what it answers."""
    calls = []
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "config.json").write_text("{}")

    def snapshot_download(name, **arguments):
        calls.append(("download", name, arguments))
        return str(tmp_path / "snapshot")

    module = types.SimpleNamespace(
        snapshot_download=snapshot_download,
        create_repo=lambda name, **arguments: calls.append(("create", name, arguments)),
        upload_folder=lambda **arguments: calls.append(("upload", arguments.pop("repo_id"), arguments)),
        calls=calls,
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setenv("KMASKRCNN_OFFLINE", "0")
    return module


def test_pull_takes_a_model_folder_and_no_more(library, tmp_path, monkeypatch):
    assert hub.pull("hf://owner/cells@v2") == tmp_path / "snapshot"
    (_, name, arguments) = library.calls[0]
    assert (name, arguments["revision"], arguments["local_files_only"]) == ("owner/cells", "v2", False)
    assert "checkpoints" not in "".join(arguments["allow_patterns"])
    monkeypatch.setenv("KMASKRCNN_OFFLINE", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.pull("hf://owner/cells", "~/mine") == tmp_path / "mine"
    assert library.calls[1][2]["local_files_only"]
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["config.json"]
    (tmp_path / "mine" / "config.json").unlink()
    (tmp_path / "mine" / "best.weights.h5").write_text("trained")
    with pytest.raises(WeightsError, match=r"mine/best.weights.h5: already exists"):
        hub.pull("hf://owner/cells", "~/mine")
    with pytest.raises(WeightsError, match=r"mine/best.weights.h5: already exists"):
        hub.pull("hf://owner/cells", tmp_path / "mine")
    assert len(library.calls) == 2
    (tmp_path / "snapshot" / "config.json").unlink()
    with pytest.raises(WeightsError, match="hf://owner/cells: is not a kmaskrcnn model"):
        hub.pull("hf://owner/cells")


def test_push_leaves_checkpoints_and_logs_at_home(library, tmp_path, monkeypatch):
    for name in ("config.json", "labels.json", "best.weights.h5", "metrics.jsonl"):
        (tmp_path / name).write_text("{}")
    assert hub.push(tmp_path, "hf://owner/cells", private=True) == "https://huggingface.co/owner/cells"
    assert library.calls[0] == ("create", "owner/cells", {"private": True, "exist_ok": True})
    assert "best.weights.h5" in library.calls[1][2]["allow_patterns"]
    assert not any("metrics" in pattern for pattern in library.calls[1][2]["allow_patterns"])
    with pytest.raises(WeightsError, match="is not a model folder"):
        hub.push(pathlib.Path("docs"), "hf://owner/cells")
    monkeypatch.setenv("KMASKRCNN_OFFLINE", "1")
    with pytest.raises(WeightsError, match="the network is off"):
        hub.push(tmp_path, "hf://owner/cells")


def test_what_goes_wrong_is_one_line(library, monkeypatch):
    for address in ("hf://owner", "hf://owner/../x/y", "hf:///x", "hf://a/b/c", "owner/name", "hf://a/b\n"):
        with pytest.raises(WeightsError, match="is not of the form hf://OWNER/NAME"):
            hub.pull(address)

    def fail(*_, **__):
        raise OSError("401 Client Error\nRepository Not Found")

    library.snapshot_download = fail
    with pytest.raises(WeightsError, match=r"cannot be downloaded \(401 Client Error Repository Not Found\)$"):
        hub.pull("hf://owner/cells")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match="pip install huggingface_hub"):
        hub.pull("hf://owner/cells")


def test_the_real_library_offline_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    with pytest.raises(WeightsError, match=r"^hf://owner/cells: cannot be downloaded .*; the network is off"):
        hub.pull("hf://owner/cells", offline=True)
