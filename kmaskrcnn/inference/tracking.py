"""Object ids over the frames of a video, by ByteTrack as the package `trackers` has it."""

from __future__ import annotations

import dataclasses

import numpy as np

from kmaskrcnn.config import ConfigError
from kmaskrcnn.results.prediction import Prediction


class Tracker:
    """Gives the objects of successive frames ids: one object has one id in all frames.

    Give it all objects of a frame, of low scores too: they keep a track alive, but none begins with them. An object
    gets its id in the second frame that shows it.

    Args:
        frames_per_second: of the frames that it is given.
        min_score: the least score of an object that begins a track.

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(self, frames_per_second: float, min_score: float = 0.5):
        try:
            from trackers import ByteTrackTracker
        except ImportError:
            raise ConfigError("tracking needs a package: pip install trackers") from None
        self._tracker = ByteTrackTracker(
            frame_rate=frames_per_second,
            track_activation_threshold=min_score,
            high_conf_det_threshold=min_score,
            minimum_consecutive_frames=1,
        )

    def update(self, prediction: Prediction) -> Prediction:
        """The objects of the next frame with their `track_ids`; -1 for one without a track yet."""
        detections = prediction.to_supervision(masks=False)
        detections.data["index"] = np.arange(len(prediction))
        tracked = self._tracker.update(detections)
        ids = np.full(len(prediction), -1, np.int32)
        if tracked.tracker_id is not None and len(tracked):
            ids[tracked.data["index"]] = tracked.tracker_id
        return dataclasses.replace(prediction, track_ids=ids)
