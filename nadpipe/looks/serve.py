"""Serve a results folder to a browser on this machine."""

import contextlib
import functools
import http
import http.server
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import tyro

from nadpipe.errors import NadpipeError

_ADDRESS = "127.0.0.1"  # reachable from this machine only
_PAGES = ("report.html", "explorer/index.html", "index.html")  # the first one that exists is opened


def serve(folder: Annotated[Path, tyro.conf.Positional] = Path("results"), port: int = 8000, open: bool = True) -> None:
    """Serve a folder at http://127.0.0.1:<port>/ until Ctrl-C. No other machine can reach it.

    Args:
        folder: Folder of a run's results, or the explorer alone.
        port: Port to listen on; 0 is any free port.
        open: Open the report, or else the explorer, in the browser.
    """
    page = next((page for page in _PAGES if (folder / page).is_file()), None)
    if page is None:
        raise NadpipeError(f"{folder}: has no report and no explorer; make them with snakemake all, or give another folder")
    with make_server(folder, port) as server, contextlib.suppress(KeyboardInterrupt):
        address = f"http://{_ADDRESS}:{server.server_port}/{page}"
        print(f"serving {folder} at {address} until Ctrl-C", flush=True)
        if open:
            webbrowser.open(address)
        server.serve_forever()


def make_server(folder: Path, port: int) -> http.server.ThreadingHTTPServer:
    """Return a server of the files in a folder. Raises NadpipeError if the port cannot be used."""
    try:
        return http.server.ThreadingHTTPServer((_ADDRESS, port), functools.partial(_Files, directory=str(folder.resolve())))
    except (OSError, OverflowError) as error:
        raise NadpipeError(f"--port: {port} cannot be used ({error}); choose another, or 0 for a free one") from None


class _Files(http.server.SimpleHTTPRequestHandler):
    """Answer requests for files in the folder, and no others: no lists of folders, no links that lead out of the folder."""

    def send_head(self) -> Any:
        """Return the requested file, or send an error and return None."""
        port = self.server.server_port  # type: ignore[attr-defined]
        if self.headers.get("Host") not in (f"{_ADDRESS}:{port}", f"localhost:{port}"):
            # a page on the web could otherwise read the results through a name that it points to this machine
            self.send_error(http.HTTPStatus.FORBIDDEN, f"open http://{_ADDRESS}:{port}/")
            return None
        try:
            inside = Path(self.translate_path(self.path)).resolve().is_relative_to(self.directory)
        except (OSError, ValueError, RuntimeError):  # a name that is too long, a NUL character, a loop of links
            inside = False
        if not inside:
            self.send_error(http.HTTPStatus.NOT_FOUND)
            return None
        return super().send_head()

    def list_directory(self, path: Any) -> None:
        """Refuse to list a folder that has no index.html."""
        self.send_error(http.HTTPStatus.NOT_FOUND)

    def end_headers(self) -> None:
        """Add headers: browsers must not guess the type of a file, and must ask again after a run has changed it."""
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, *arguments: Any) -> None:
        """Print nothing."""
