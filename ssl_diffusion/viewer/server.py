"""Serves a page and the tiles of its images to browsers on this machine, and nothing else."""

import io
import json
import logging
import re
import socketserver
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import openslide
from openslide.deepzoom import DeepZoomGenerator

from ssl_diffusion.errors import InputError

ADDRESS = "127.0.0.1"
STATIC = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/openseadragon.js": ("openseadragon.min.js", "text/javascript; charset=utf-8"),
}
TILE = re.compile(r"/(\w+)_files/([0-9]{1,2})/([0-9]{1,7})_([0-9]{1,7})\.png", re.ASCII)
OPENSEADRAGON_STYLE = "sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE="  # it adds one rule
POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    f"style-src 'self' '{OPENSEADRAGON_STYLE}'",
    "img-src 'self' data: blob:",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
)
HEADERS = {
    "Content-Security-Policy": "; ".join(POLICY),
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",  # the next image may be served on the same port
}


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD; everything that the server does not know is 404."""

    protocol_version = "HTTP/1.1"
    timeout = 60  # s that an idle connection keeps its thread

    def do_GET(self) -> None:
        # A page elsewhere can have its own name point to this machine; its Host gives it away.
        if self.headers.get("Host", "").lower() not in self.server.hosts:
            self.send_error(HTTPStatus.FORBIDDEN, f"Only for {' and '.join(self.server.hosts)}")
            return
        try:
            found = self.server.find(self.path.partition("?")[0])
        except openslide.OpenSlideError as error:
            logging.warning("cannot read %s: %s", self.path, error)
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, "The image cannot be read there")
            return
        if found is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        body, content_type = found
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def handle(self) -> None:
        with suppress(ConnectionError):  # browsers drop tiles that are out of sight again
            super().handle()

    def log_message(self, *_: Any) -> None:
        """No line per tile."""


class Server(socketserver.ThreadingTCPServer):
    """Listens on 127.0.0.1; `serve_forever` answers until `shutdown`.

    Args:
      about: what the page reads from /about.json.
      images: the Deep Zoom image served as /NAME.dzi and /NAME_files/, by name.
      port: 0 takes a free one; `url` says which.

    Raises InputError if the port is in use or not allowed.
    """

    allow_reuse_address = True  # a server that has just ended does not block its port
    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self, about: Mapping[str, Any], images: Mapping[str, DeepZoomGenerator], port: int
    ):
        try:
            super().__init__((ADDRESS, port), Handler)
        except OSError as error:
            raise InputError(
                f"cannot listen on port {port} of {ADDRESS} ({error.strerror}); choose another by "
                "--port, 0 takes a free one"
            ) from None
        port = self.server_address[1]
        self.hosts = f"{ADDRESS}:{port}", f"localhost:{port}"
        self.url = f"http://{self.hosts[0]}/"
        self._images = images
        self._fixed = {
            path: ((Path(__file__).parent / name).read_bytes(), content_type)
            for path, (name, content_type) in STATIC.items()
        }
        self._fixed["/about.json"] = json.dumps(about).encode(), "application/json"
        for name, image in images.items():
            self._fixed[f"/{name}.dzi"] = image.get_dzi("png").encode(), "application/xml"

    def find(self, path: str) -> tuple[bytes, str] | None:
        """Body and content type of a path; None if there is no such thing."""
        if path in self._fixed:
            return self._fixed[path]
        match = TILE.fullmatch(path)
        if not match or match[1] not in self._images:
            return None
        level, column, row = (int(number) for number in match.groups()[1:])
        try:
            tile = self._images[match[1]].get_tile(level, (column, row))
        except ValueError:  # no such level, no such tile
            return None
        body = io.BytesIO()
        # Lossless, and without the scanner's colour profile: the model has seen the bare numbers.
        tile.save(body, "PNG", compress_level=1, icc_profile=None)
        return body.getvalue(), "image/png"
