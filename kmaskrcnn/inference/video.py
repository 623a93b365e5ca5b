"""Video files: frames in, annotated frames out, with imageio's ffmpeg or OpenCV, whichever is installed."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from kmaskrcnn.config import ConfigError

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


def is_video(path: str | os.PathLike) -> bool:
    """Whether a file is a video, by its name."""
    return os.fspath(path).lower().endswith(VIDEO_SUFFIXES)


class VideoReader:
    """The frames of a video file, in order; iterate over it once.

    Args:
        path: the file.

    Attributes:
        frames_per_second: frame rate of the file.
        count: number of frames according to the file's header, 0 if unknown.

    Raises:
        ConfigError: neither imageio-ffmpeg nor OpenCV is installed.
        OSError: the file cannot be read.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        if not os.path.isfile(self.path):
            raise FileNotFoundError(f"{self.path}: no such file")
        self._library = video_library()
        if self._library.__name__ == "cv2":
            self._capture = self._library.VideoCapture(self.path)
            if not self._capture.isOpened():
                raise OSError(f"{self.path}: not a video that OpenCV reads")
            self.frames_per_second = self._capture.get(self._library.CAP_PROP_FPS) or 25.0
            self.count = max(int(self._capture.get(self._library.CAP_PROP_FRAME_COUNT)), 0)
            return
        self._frames = self._library.read_frames(self.path)
        try:
            meta = next(self._frames)
        except (OSError, RuntimeError) as error:
            reason = str(error).strip().splitlines()
            raise OSError(f"{self.path}: not a video that ffmpeg reads ({reason[-1] if reason else error!r})") from None
        self._size = meta["size"]
        self.frames_per_second = float(meta["fps"])
        self.count = round(meta["duration"] * self.frames_per_second)

    def __iter__(self) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8 RGB frames."""
        if self._library.__name__ == "cv2":
            while True:
                read, frame = self._capture.read()
                if not read:
                    break
                yield np.ascontiguousarray(frame[:, :, ::-1])
            self._capture.release()
            return
        width, height = self._size
        for data in self._frames:
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)


class VideoWriter:
    """Writes frames of one size to an .mp4 file; a context manager.

    Args:
        path: the file.
        frames_per_second: frame rate of the file.

    Raises:
        ConfigError: neither imageio-ffmpeg nor OpenCV is installed.
        OSError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike, frames_per_second: float):
        self.path, self.frames_per_second = Path(path), frames_per_second
        self._library = video_library()
        self._file: Any = None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.release() if self._library.__name__ == "cv2" else self._file.close()

    def add(self, frame: np.ndarray) -> None:
        """Write a frame, (H, W, 3) uint8 RGB; an odd last row or column is cropped, as codecs require."""
        frame = frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]
        if self._file is None:
            self._open(frame.shape[1], frame.shape[0])
        if self._library.__name__ == "cv2":
            self._file.write(np.ascontiguousarray(frame[:, :, ::-1]))
        else:
            self._file.send(np.ascontiguousarray(frame))

    def _open(self, width: int, height: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        path, size = str(self.path), (width, height)
        if self._library.__name__ == "cv2":
            codec = self._library.VideoWriter_fourcc(*"mp4v")
            self._file = self._library.VideoWriter(path, codec, self.frames_per_second, size)
            if not self._file.isOpened():
                raise OSError(f"{self.path}: cannot be written")
            return
        self._file = self._library.write_frames(path, size, fps=self.frames_per_second, macro_block_size=2)
        self._file.send(None)


def video_library() -> ModuleType:
    """imageio's ffmpeg, which writes what browsers play, or else OpenCV; raises ConfigError where there is neither."""
    for name in ("imageio_ffmpeg", "cv2"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ConfigError("videos need a package: pip install imageio[ffmpeg], or pip install opencv-python-headless")
