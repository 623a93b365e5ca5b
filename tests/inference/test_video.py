"""Videos through each library that can read them."""

import builtins

import numpy as np
import pytest

from kmaskrcnn.config import ConfigError
from kmaskrcnn.inference import video
from kmaskrcnn.inference.video import VideoReader, VideoWriter, is_video


@pytest.mark.parametrize("library", ["imageio_ffmpeg", "cv2"])
def test_frames_come_back_in_order(library, tmp_path, monkeypatch):
    module = pytest.importorskip(library)
    monkeypatch.setattr(video, "video_library", lambda: module)
    path = tmp_path / "deep" / "v.mp4"
    frames = [np.full((48, 64, 3), (40 * i, 20, 200 - 40 * i), np.uint8) for i in range(5)]
    with VideoWriter(path, 10.0) as writer:
        for frame in frames:
            writer.add(np.pad(frame, ((0, 1), (0, 1), (0, 0))))  # odd sides
    reader = VideoReader(path)
    assert reader.frames_per_second == pytest.approx(10.0)
    assert reader.count == 5
    read = list(reader)
    assert len(read) == 5
    for frame, found in zip(frames, read, strict=True):
        assert found.shape == (48, 64, 3)
        assert np.abs(found[4:-4, 4:-4].astype(int) - frame[4:-4, 4:-4]).max() < 12


@pytest.mark.parametrize("library", ["imageio_ffmpeg", "cv2"])
def test_what_is_no_video_is_named(library, tmp_path, monkeypatch):
    module = pytest.importorskip(library)
    monkeypatch.setattr(video, "video_library", lambda: module)
    (tmp_path / "broken.mp4").write_bytes(b"nothing of the kind")
    with pytest.raises(OSError, match=r"broken\.mp4: not a video"):
        VideoReader(tmp_path / "broken.mp4")
    with pytest.raises(FileNotFoundError, match=r"none\.mp4"):
        VideoReader(tmp_path / "none.mp4")
    assert is_video("A.MP4")
    assert not is_video("a.png")


def test_without_a_library_the_packages_are_named(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").touch()
    whole = builtins.__import__

    def without(name, *rest):
        if name in ("cv2", "imageio_ffmpeg"):
            raise ImportError(name)
        return whole(name, *rest)

    monkeypatch.setattr(video.importlib, "import_module", without)
    with pytest.raises(ConfigError, match="pip install imageio"):
        VideoReader(tmp_path / "a.mp4")
