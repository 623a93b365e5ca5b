"""A worker of the server: LitServe gives it the requests of a batch, and gets an answer for each."""

# No postponed annotations: LitServe hands those of `decode_request` to FastAPI.
import logging
import multiprocessing
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, Response
from litserve import LitAPI

from kmaskrcnn.errors import reason
from kmaskrcnn.serving import rest
from kmaskrcnn.serving.admission import admitted
from kmaskrcnn.serving.rest import AnswerForm
from kmaskrcnn.serving.runner import Outputs, RefusedError, joined_run, open_model
from kmaskrcnn.serving.settings import ModelVersion, ServeSettings, newest_version
from kmaskrcnn.serving.stopping import end_with_server

_log = logging.getLogger(__name__)


class Failure(Exception):
    """What becomes of one request of a batch, as an HTTP status and words."""

    def __init__(self, status: int, words: str):
        super().__init__(status, words)
        self.status, self.words = status, words


class Detector(LitAPI):
    """The model in a process of its own.

    Args:
        settings: of the server.
        name: of the model.
        open_version: opens a version's path, for tests; default: `open_model`.

    Attributes:
        version: the number of the version that a worker loaded last; 0: none yet.
    """

    def __init__(self, settings: ServeSettings, name: str, open_version: Callable[[str], Any] | None = None):
        with warnings.catch_warnings():
            # It says that max_batch_size was not set, although it was, to 1.
            warnings.filterwarnings("ignore", "The LitServer has both batch and unbatch methods")
            super().__init__(
                max_batch_size=settings.max_batch_size,
                batch_timeout=settings.batch_wait_ms / 1000,
                api_path=f"/v1/models/{name}:predict",
            )
        self._settings, self._open_version = settings, open_version
        # Shared with the server's process, as LitServe starts its workers.
        self.version = multiprocessing.get_context("spawn").RawValue("q", 0)

    def setup(self, device: str) -> None:
        """Load the newest version; later ones are loaded beside it and then take its place."""
        del device
        end_with_server()
        settings = self._settings
        version = newest_version(settings)
        try:
            self._serve(version)
        except Exception as error:
            print(f"error: {version.path}: {reason(error)}", file=sys.stderr, flush=True)
            logging.disable()  # LitServe would show where in the code it was
            raise
        if settings.poll_seconds:
            threading.Thread(target=self._watch, args=(version,), daemon=True).start()

    def _serve(self, version: ModelVersion) -> None:
        self._served = version, self._open(version.path)
        self.version.value = version.number

    def _open(self, path: str) -> Any:
        if self._open_version is not None:
            return self._open_version(path)
        return open_model(path, self._settings.threads_of_worker(), self._settings.max_pixels)

    def _watch(self, version: Any) -> None:
        while True:
            threading.Event().wait(self._settings.poll_seconds)
            try:
                newer = newest_version(self._settings)
                if newer != version:
                    self._serve(newer)
                    version = newer
            except Exception:
                # The version that works goes on; a folder that is broken is tried again.
                _log.exception("a new version of the model cannot be loaded")

    def decode_request(self, request: Annotated[Any, Depends(admitted)]) -> tuple[list[bytes], AnswerForm]:
        """Images, and how the answer is wanted; parsed already."""
        return request

    def batch(self, inputs: list[Any]) -> list[Any]:
        """As they come."""
        return inputs

    def predict(self, x: Any) -> Any:
        """The body of each answer of a batch with its media type, or a Failure."""
        if self.max_batch_size == 1:
            return self._outcomes([x])[0]
        return self._outcomes(x)

    def _outcomes(self, requests: list[tuple[list[bytes], AnswerForm]]) -> list[tuple[bytes, str] | Failure]:
        version, runner = self._served
        try:
            if sum(len(images) for images, _ in requests) <= self._settings.max_images:
                results = joined_run(runner, [images for images, _ in requests])
                return [_answer(outputs, form, version) for outputs, (_, form) in zip(results, requests, strict=True)]
        except Exception as error:
            # One of them is the reason: each for itself.
            if len(requests) == 1:
                return [_failure(error)]
        outcomes: list[tuple[bytes, str] | Failure] = []
        for images, form in requests:
            try:
                outcomes.append(_answer(joined_run(runner, [images])[0], form, version))
            except Exception as error:
                outcomes.append(_failure(error))
        return outcomes

    def unbatch(self, output: list[Any]) -> list[Any]:
        """As they are."""
        return output

    def encode_response(self, output: tuple[bytes, str] | Failure) -> Response:
        """The answer to one request."""
        if isinstance(output, Failure):
            # Not raised: LitServe would answer the whole batch with it.
            return Response(rest.format_error(output.words), output.status, media_type=rest.JSON)
        body, media_type = output
        return Response(body, media_type=media_type)


def _answer(outputs: Outputs, form: AnswerForm, version: ModelVersion) -> tuple[bytes, str]:
    try:
        return rest.format_answer(outputs, form, version.name, version.number), form.media_type
    except ValueError as error:
        raise RefusedError(str(error)) from None


def _failure(error: Exception) -> Failure:
    if isinstance(error, RefusedError):
        return Failure(400, str(error))
    _log.error("the model failed", exc_info=error)
    return Failure(422, f"the model failed: {type(error).__name__}")
