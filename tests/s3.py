"""A local S3 server for the tests. Its connection can break at any request."""

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "nadpipe"
KEYS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_DEFAULT_REGION": "us-east-1"}


class _Quiet(WSGIRequestHandler):
    def log_request(self, *arguments: object) -> None:
        """Print nothing."""


class Server:
    """A server on a free port, started on creation and ended by `stop`."""

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.port}"
        self.lost = False
        self._loses: Callable[[str, str], bool] = lambda method, path: False
        os.environ |= KEYS
        self.bucket = boto3.resource("s3", endpoint_url=self.url).Bucket(BUCKET)
        self.bucket.create()

    def _answer(self, environ: dict, start_response: Callable) -> list[bytes]:
        self.lost = self.lost or self._loses(environ["REQUEST_METHOD"], environ["PATH_INFO"])
        if self.lost:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError
        return self._app(environ, start_response)

    def lose_at(self, method: str, pattern: str, count: int) -> None:
        """Break the connection at the count-th request of a method for keys that contain a pattern, until `mend`."""
        requests = []

        def loses(used: str, path: str) -> bool:
            requests.extend([path] * (used == method and pattern in path))
            return len(requests) >= count

        self._loses = loses

    def mend(self) -> None:
        """Restore the connection."""
        self.lost, self._loses = False, lambda method, path: False

    def put(self, file: Path, key: str) -> None:
        """Store a file."""
        self.bucket.upload_file(str(file), key)

    def keys(self, prefix: str) -> list[str]:
        """Return the keys below a prefix."""
        return [item.key for item in self.bucket.objects.filter(Prefix=prefix)]

    def stop(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._thread.join()
