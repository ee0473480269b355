"""The server of the page: Bokeh's, with a token on every address but this machine's own."""

import hmac
import logging
import secrets
from collections.abc import Sequence
from typing import Any

from bokeh.application import Application
from bokeh.application.handlers.function import FunctionHandler
from bokeh.resources import Resources
from bokeh.server.server import BaseServer
from bokeh.server.tornado import BokehTornado
from bokeh.server.util import bind_sockets
from bokeh.server.views.static_handler import StaticHandler
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.ioloop import IOLoop, PeriodicCallback
from tornado.web import ErrorHandler, HTTPError, RequestHandler

from jaxvae.errors import InputError
from jaxvae.explore import page, pictures
from jaxvae.explore.watched import Watched

_LOCAL = ("localhost", "127.0.0.1", "[::1]")
_MOST_MESSAGE = (
    2 * pictures.MOST_BYTES
)  # Bytes of a message: a file of more than `MOST_BYTES` gets a word, not silence.


class _Images(RequestHandler):
    """The test images of the runs: ``image/RUN/NUMBER.png``."""

    def initialize(self, runs: Sequence[Watched]) -> None:
        self._runs = runs

    def get(self, run: str, number: str) -> None:
        """Answer with one image. Raises `HTTPError`."""
        if int(run) >= len(self._runs) or int(number) >= self._runs[int(run)].model.tested.total:
            raise HTTPError(404)
        self.set_header("Content-Type", "image/png")
        self.set_header("Cache-Control", "private, max-age=3600")
        (image,) = self._runs[int(run)].model.images([int(number)])
        self.finish(pictures.png(image))


class _Guarded(BokehTornado):  # type: ignore[misc]
    """The application. It refuses, with 403, every request without the token, to the page and to its websocket.

    Without a token it refuses other names of this machine: an address of the web could point here (DNS rebinding).
    Bokeh's own scripts are no secret.

    Args:
      token: None: the server listens to this machine only.
      others: arguments of `BokehTornado`.
    """

    def __init__(self, *args: Any, token: str | None, **others: Any):
        self._token = token
        super().__init__(*args, **others)

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        """See `tornado.web.Application`."""
        if self._allows(request):
            return super().find_handler(request, **kwargs)
        return self.get_handler_delegate(request, ErrorHandler, {"status_code": 403})

    def resources(self, absolute_url: str | bool | None = None) -> Resources:
        """Bokeh's scripts, those that the page needs: from this server, whatever BOKEH_RESOURCES says."""
        return Resources(
            mode="server",
            root_url=self.prefix + "/",
            path_versioner=StaticHandler.append_version,
            components=["bokeh", "bokeh-widgets"],
        )

    def _allows(self, request: HTTPServerRequest) -> bool:
        if self._token is None:
            name, _, port = request.host.rpartition(":")
            return (name if port.isdigit() else request.host) in _LOCAL
        given = request.query_arguments.get("token", [b""])[-1]
        return hmac.compare_digest(given, self._token.encode()) or request.path.startswith("/static/")


class Server:
    """A page of one or two runs.

    Args:
      runs: what it shows.
      host: address to listen on.
      port: 0: one that is free.

    Attributes:
      url: of the page, with the token if there is one.

    Raises:
      InputError: it cannot listen there.
    """

    def __init__(self, runs: Sequence[Watched], host: str, port: int):
        try:
            sockets, self.port = bind_sockets(host, port)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise InputError(f"--host {host} --port {port}: cannot listen there: {why}") from None
        self._runs = runs
        token = None if _is_loopback(host) else secrets.token_urlsafe(24)
        asked = "" if token is None else f"?token={token}"
        # Browsers keep images by their address, and another server of this port may show another run.
        own = asked or f"?v={secrets.token_hex(4)}"
        name = f"[{host}]" if ":" in host else host
        self.url = f"http://{name}:{self.port}/{asked}"
        for name in ("tornado.access", "bokeh"):  # A refused request is no trouble, nor a visitor who leaves.
            logging.getLogger(name).setLevel(logging.ERROR)
        self._application = _Guarded(
            {"/": Application(FunctionHandler(lambda document: page.build(document, runs, self._images(own))))},
            token=token,
            # With a token, the page may have any name. Without, it may come through a tunnel from another port.
            extra_websocket_origins=["*"] if token else [f"{name}:*" for name in _LOCAL],
            extra_patterns=[(r"/image/([0-9]{1,3})/([0-9]{1,9})\.png", _Images, {"runs": runs})],
            websocket_max_message_size_bytes=_MOST_MESSAGE,
        )
        self._http = HTTPServer(self._application, max_body_size=2**16, max_header_size=2**16)
        self._http.add_sockets(sockets)

    @staticmethod
    def _images(asked: str) -> Any:
        return lambda run: f"image/{run}/@number.png{asked}"

    def serve(self) -> None:
        """Answer until the process is interrupted, or the loop of this thread is stopped."""
        loop = IOLoop.current()
        server = BaseServer(loop, self._application, self._http)
        looks = [PeriodicCallback(run.look, page.EVERY) for run in self._runs]
        server.start()
        for look in looks:
            look.start()
        try:
            loop.start()
        finally:
            for look in looks:
                look.stop()
            server.stop()


def _is_loopback(host: str) -> bool:
    """Whether requests to this address are checked by its name, rather than by a token."""
    return host in ("localhost", "127.0.0.1", "::1")
