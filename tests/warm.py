"""A server that runs Snakemake, `python -m nadpipe` and scripts in forks of a process that has imported torch and the like.

A job of the small demo spends two to five seconds on imports and a fraction of a second on its work. A dry run spends a third
of its time on imports. Runs of the tests call `python` of this module's `bin` folder, which is also first in their PATH. It
sends the command to the server, which forks, imports the checkout's own nadpipe in the fork and runs the command there. Every
other command goes to the real Python. Runs that are killed and .ci/run's demo use plain processes.

Snakemake computes a fingerprint of every stage's code. The forks share the server's syntax trees of unchanged modules.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

PRELOADED = (
    *("torch", "torchvision", "open_clip", "numpy", "pandas", "pyarrow.parquet", "zarr", "scipy.stats", "sklearn.metrics"),
    *("sklearn.linear_model", "matplotlib.pyplot", "PIL.Image", "altair", "jinja2", "tqdm", "filelock", "safetensors.torch"),
    *("scipy.io", "scipy.sparse", "jaxtyping", "tyro", "rich.table", "pydantic", "snakemake.cli"),
)
MODULES = ("nadpipe", "snakemake", "runpy")  # run in forks; `-m runpy MODULE` runs any module
ROOT = Path(__file__).parents[1]
FINGERPRINT = "nadpipe/fingerprint.py"
CLIENT = """#!{python} -ES
import json, os, socket, sys
command = sys.argv[2:] if sys.argv[1:2] == ["-m"] else sys.argv[1:]
if not command or command[0] not in {modules} and not command[0].endswith(".py"):
    os.execv("{python}", ["{python}", *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as server:
    server.connect("{address}")
    origin = {{"python": sys.argv[0], "folder": os.getcwd(), "environment": dict(os.environ)}}
    request = json.dumps({{"command": command}} | origin).encode()
    socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(request)
    status = server.recv(1)
sys.exit(status[0] if status else 137)
"""


class Server:
    """Run a server until this process ends; `bin` is the folder that goes first in PATH."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="warm-")
        folder = Path(self._folder.name)
        address = folder / "socket"
        self.bin = folder / "bin"
        self.bin.mkdir()
        client = self.bin / "python"
        client.write_text(CLIENT.format(python=sys.executable, address=address, modules=MODULES))
        client.chmod(0o755)
        command = [sys.executable, __file__, str(address)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout.readline() == b"ready\n"
        atexit.register(self.stop)

    def stop(self) -> None:
        """End the server; it also ends with the process that started it."""
        self._process.stdin.close()
        self._process.wait(10)
        self._folder.cleanup()


def serve(address: str) -> None:
    """Answer one command a connection until standard input is closed."""
    sys.path.remove(str(Path(__file__).parent))
    for name in PRELOADED:
        importlib.import_module(name)
    sys.modules["snakemake.cli"].get_argument_parser()  # imports Snakemake's plugins
    parsed = _parse_package()
    gc.collect()
    gc.freeze()  # forks neither look through the objects of the server nor copy their pages
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            _reap()
            if sys.stdin in ready:
                return
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                status = _answer(connection, parsed)
                with contextlib.suppress(BrokenPipeError):
                    connection.sendall(bytes([status]))
                os._exit(status)
            connection.close()


def _parse_package() -> dict[str, Callable]:
    """Compute the fingerprints of all stages. Return the functions of their module that remember results by text."""
    sys.path.insert(0, str(ROOT))
    fingerprint = importlib.import_module("nadpipe.fingerprint")
    for path in (ROOT / "nadpipe" / "stages").glob("[a-z]*.py"):
        fingerprint.code_fingerprint(f"nadpipe.stages.{path.stem}")
    sys.path.remove(str(ROOT))
    for name in [name for name in sys.modules if name.partition(".")[0] == "nadpipe"]:
        del sys.modules[name]
    return {name: getattr(fingerprint, name) for name in ("_parse", "_unparse")}


def _share(parsed: dict[str, Callable]) -> None:
    """Have the fingerprints of the package in the current folder use what is parsed, if they are computed by the same code."""
    own = Path(FINGERPRINT)
    if own.is_file() and own.read_bytes() == (ROOT / FINGERPRINT).read_bytes():
        vars(importlib.import_module("nadpipe.fingerprint")).update(parsed)


def _reap() -> None:
    """Remove forks that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _answer(connection: socket.socket, parsed: dict[str, Callable]) -> int:
    """Run the command that a connection sends; return its exit status."""
    header, streams, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb") as received:
        request = json.loads(received.read(int.from_bytes(header, "big")))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    _limit_threads()
    program = request["command"][0]
    first = str(Path(program).parent) if program.endswith(".py") else ""
    sys.path[:0] = [first, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv, sys.executable = request["command"], request["python"]  # jobs of Snakemake on Slurm run it
    if program == "snakemake":
        _share(parsed)
    atexit._clear()  # what the server registered
    try:
        if program.endswith(".py"):
            runpy.run_path(program, run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
    except SystemExit as exit:
        if exit.code is not None and not isinstance(exit.code, int):
            print(exit.code, file=sys.stderr)
            return 1
        return exit.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
    return 0


def _limit_threads() -> None:
    """Use one thread: the workers of the tests share the cores, and threads that wait for each other take CPU time."""
    import threadpoolctl
    import torch

    torch.set_num_threads(1)
    threadpoolctl.threadpool_limits(1)


if __name__ == "__main__":
    serve(sys.argv[1])
    os._exit(0)  # leaves out the seconds in which Python takes everything imported apart
