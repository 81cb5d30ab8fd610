"""The server of a results folder: what it answers, and to whom."""

import http.client
import signal
import subprocess
import sys
import threading

import pytest

from nadpipe.cli import main
from nadpipe.errors import BAD_INPUT
from nadpipe.looks.serve import make_server


@pytest.fixture
def folder(tmp_path):
    """Return a results folder next to a secret, with a link to the secret."""
    (tmp_path / "secret.txt").write_text("secret")
    results = tmp_path / "results"
    (results / "explorer" / "data").mkdir(parents=True)
    (results / "report.html").write_text("<p>report")
    (results / "explorer" / "index.html").write_text("<p>explorer")
    (results / "explorer" / "data" / "about.js").write_text("receive()")
    (results / "link.txt").symlink_to(tmp_path / "secret.txt")
    (results / "inner.html").symlink_to("report.html")
    return results


@pytest.fixture
def ask(folder):
    """Return a function that requests a path and returns status, body and headers."""
    with make_server(folder, 0) as server:
        assert server.server_address[0] == "127.0.0.1"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

        def ask(path, host=f"127.0.0.1:{server.server_port}"):
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
            connection.putrequest("GET", path, skip_host=True)
            connection.putheader("Host", host)
            connection.endheaders()
            response = connection.getresponse()
            return response.status, response.read().decode(), response.headers

        ask.port = server.server_port
        yield ask
        server.shutdown()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/report.html", "<p>report"),
        ("/explorer/", "<p>explorer"),
        ("/explorer/index.html?a=1", "<p>explorer"),
        ("/explorer/data/about.js", "receive()"),
        ("/inner.html", "<p>report"),
    ],
)
def test_files_of_the_folder_are_served(ask, path, body):
    status, text, headers = ask(path)
    assert (status, text) == (200, body)
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        *("/../secret.txt", "/%2e%2e/secret.txt", "/explorer/../../secret.txt", "//../secret.txt", "/..%2fsecret.txt"),
        *("/link.txt", "/", "/explorer/data/", "/none.html", "/%00", "/report.html%00", f"/{'a' * 5000}", "/%ff%fe"),
    ],
)
def test_nothing_else_is_served(ask, tally, path):
    status, text, _ = ask(path)
    assert status == 404
    assert "secret" not in text.replace("secret.txt", "")
    tally("requests to the server", True)


@pytest.mark.parametrize("host", ["example.org", "example.org:80", "127.0.0.1", ""])
def test_requests_for_another_host_are_refused(ask, tally, host):
    assert ask("/report.html", host)[0] == 403
    tally("requests to the server", True)


def test_localhost_is_allowed(ask):
    assert ask("/report.html", f"localhost:{ask.port}")[0] == 200


def test_the_command_prints_the_address_and_ends_with_ctrl_c(folder):
    command = [sys.executable, "-m", "nadpipe", "serve", str(folder), "--port", "0", "--no-open"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = running.stdout.readline()
    assert line.startswith(f"serving {folder} at http://127.0.0.1:")
    assert line.endswith("/report.html until Ctrl-C\n")
    running.send_signal(signal.SIGINT)
    assert running.communicate()[1] == ""
    assert running.returncode == 0


def test_a_folder_without_pages_and_a_used_port_are_refused(tmp_path, folder, ask, capsys):
    assert main(["serve", str(tmp_path / "none")]) == BAD_INPUT
    assert capsys.readouterr().err.startswith(f"nadpipe serve: {tmp_path / 'none'}: has no report and no explorer")
    for port in (ask.port, -1, 70000):
        assert main(["serve", str(folder), "--port", str(port), "--no-open"]) == BAD_INPUT
        assert f"--port: {port} cannot be used" in capsys.readouterr().err
