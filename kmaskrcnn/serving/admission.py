"""Which requests are taken in: their bytes, images and time, and how many at once."""

# No postponed annotations: FastAPI reads them.
import asyncio
from collections.abc import AsyncIterator

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

from kmaskrcnn.serving import rest
from kmaskrcnn.serving.rest import AnswerForm
from kmaskrcnn.serving.settings import ServeSettings


class Admission:
    """Takes requests in, and no more than the settings allow.

    Attributes:
        under_way: requests that have no answer yet.
        closed: no further request is taken in.
    """

    def __init__(self, settings: ServeSettings, model_name: str):
        self._settings, self._name = settings, model_name
        self.under_way, self.closed = 0, False

    async def take(self, request: Request) -> AsyncIterator[tuple[list[bytes], AnswerForm]]:
        """The images of a request, for as long as it is under way; raises HTTPException."""
        settings = self._settings
        if self.closed:
            raise HTTPException(503, "the server is stopping")
        if self.under_way >= settings.queue:
            words = f"{settings.queue} requests are in progress already: try again later"
            raise HTTPException(429, words, {"Retry-After": "1"})
        self.under_way += 1
        try:
            yield await self._read(request)
        finally:
            self.under_way -= 1

    async def _read(self, request: Request) -> tuple[list[bytes], AnswerForm]:
        settings = self._settings
        try:
            async with asyncio.timeout(settings.timeout):
                body = await self._body(request)
        except TimeoutError:
            raise HTTPException(408, f"the request did not arrive within {settings.timeout:g} s") from None
        except ClientDisconnect:
            raise HTTPException(400, "the client has gone") from None
        try:
            if request.headers.get("content-type") == rest.PROTOBUF:
                images, form = await asyncio.to_thread(rest.parse_protobuf, body, self._name)
            else:
                images, form = await asyncio.to_thread(rest.parse, body, settings.max_images)
        except LookupError as error:
            raise HTTPException(404, str(error.args[0])) from None
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        if len(images) > settings.max_images:
            raise HTTPException(400, f"a request may hold {settings.max_images} images, this one holds {len(images)}")
        if sum(map(len, images)) > settings.max_request_bytes:
            raise HTTPException(413, f"a request may hold {settings.max_request_bytes} bytes of images")
        return images, form

    async def _body(self, request: Request) -> bytes:
        # Base64 takes four bytes for three, and the rest of a body is short.
        limit = self._settings.max_request_bytes * 4 // 3 + 4096 * self._settings.max_images
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > limit:
                raise HTTPException(413, f"a request may hold {self._settings.max_request_bytes} bytes of images")
        return bytes(body)


async def admitted(request: Request) -> AsyncIterator[tuple[list[bytes], AnswerForm]]:
    """FastAPI's dependency: what the Admission in the application's state lets in."""
    async for taken in request.app.state.admission.take(request):
        yield taken
