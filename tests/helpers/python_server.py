# SPDX-License-Identifier: Apache-2.0
"""A `python` that has imported everything already, for tests of many commands: each would import for ten seconds.

[`python`] is the path of a program that takes the place of `sys.executable` before a script, `-c` or `-m`. It asks a
server, with its own arguments, folder, environment and open files. The server has imported the large libraries. For
each set of the variables that Hugging Face's libraries read as they are imported it forks a process that imports
these, and that forks one for each command. What a command does, prints and exits with is what it would with a `python`
of its own; signals do not reach it.
"""

import atexit
import fcntl
import functools
import json
import os
import random
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
from pathlib import Path
from typing import Any

import psutil


_CLIENT = """#!{python} -ES
import json, os, socket, sys
def is_inherited(file):
    try:
        return os.get_inheritable(file)
    except OSError:  # what listed the files
        return False
arguments, name = sys.argv[1:], os.path.basename(sys.argv[0])
if name == "accelerate":
    launched = arguments[2:] if arguments[:2] == ["launch", "--quiet"] else arguments[1:]
    if arguments[0] != "launch" or not launched[0].endswith(".py"):
        os.execv({accelerate!r}, [{accelerate!r}, *arguments])
    arguments = launched
elif name == "torchrun":
    arguments = ["-m", "torch.distributed.run", *arguments]
elif arguments[:1] == ["-u"]:
    arguments = arguments[1:]
if not arguments or not (arguments[0] in ("-c", "-m") or arguments[0].endswith(".py")):
    os.execv({python!r}, [{python!r}, *arguments])
open_files = [file for file in map(int, os.listdir("/proc/self/fd")) if file < 3 or is_inherited(file)]
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
environment = dict(os.environ, PYTHON_EXEC={address!r}.replace("socket", "python"))  # what torchrun starts
request = dict(
    arguments=arguments, folder=os.getcwd(), environment=environment, files=open_files, has_package=name != "stranger"
)
data = json.dumps(request).encode()
socket.send_fds(server, [len(data).to_bytes(8, "big")], open_files)
server.sendall(data)
answer = server.recv(1)
sys.exit(answer[0] if answer else 1)
"""
MOST_FILES = 32
# Variables that are read as modules are imported. Whoever sets another one is forked from another process.
_READ_BY_IMPORTS = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "DATASETS_", "HOME", "XDG_", "MPL", "PYTHON")


def python() -> str:
    """The path of the program. It is called `python`, and lies beside an `accelerate` and a `torchrun` alike."""
    return str(_started() / "python")


def python_without_package() -> str:
    """The path of one whose processes have all of the libraries and not this package."""
    return str(_started() / "stranger")


@functools.cache
def _started() -> Path:
    """The folder of the program, once there is a server."""
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if session is None:
        folder, owner = Path(tempfile.mkdtemp(prefix="python")), os.getpid()
        is_first = True
    else:  # one for all processes of xdist, until the one that has started them ends
        folder, owner = Path(tempfile.gettempdir()) / f"python-{session}", os.getppid()
        is_first = _made(folder)
    address, end = folder / "socket", time.monotonic() + 1800
    server = _start(folder, address, owner) if is_first else None
    while not address.exists():
        if time.monotonic() > end or (server is not None and server.poll() is not None):
            raise RuntimeError(f"the server of {folder} has not begun, or has ended")
        time.sleep(0.1)
    return folder


def _made(folder: Path) -> bool:
    """Whether it is this process that has made the folder."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        return False
    return True


def _start(folder: Path, address: Path, owner: int) -> subprocess.Popen:
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    for name in ("python", "accelerate", "torchrun", "stranger"):
        client = folder / name
        client.write_text(_CLIENT.format(python=sys.executable, accelerate=accelerate, address=str(address)))
        client.chmod(0o755)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # a pool of threads would not outlive a fork
    command = [sys.executable, __file__, str(address), str(owner)]
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    if owner == os.getpid():
        atexit.register(_end, server)
    return server


def _end(server: subprocess.Popen) -> None:
    """The server is waited for, so that its time is known as ours."""
    server.terminate()
    server.wait()


def _end_with_children(*_: Any) -> None:
    try:
        while True:
            os.wait()
    except ChildProcessError:
        os._exit(0)


def serve(address: str, owner: int) -> None:
    """Answer until the process `owner` has ended, however it has."""

    def end(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)  # all that it has forked
        shutil.rmtree(os.path.dirname(address), ignore_errors=True)
        _end_with_children()

    signal.signal(signal.SIGTERM, end)
    _import_libraries()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen()
    os.rename(f"{address}.new", address)
    parents: dict[tuple, socket.socket] = {}
    listener.settimeout(2)
    while True:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            if not psutil.pid_exists(owner):
                end()
            continue
        request, files = _receive(connection)
        read = {name: value for name, value in request["environment"].items() if name.startswith(_READ_BY_IMPORTS)}
        key = (request["has_package"], *sorted(read.items()))
        if key not in parents:
            parents[key], theirs = socket.socketpair()
            if os.fork() == 0:
                signal.signal(signal.SIGTERM, _end_with_children)
                for inherited in (listener.detach(), connection.detach(), *files):
                    os.close(inherited)
                _fork_for_each(theirs, request)
            theirs.close()
        _send(parents[key], request, [connection.fileno(), *files])
        for file in files:
            os.close(file)
        connection.close()


def _import_libraries() -> None:
    """What reads none of the variables."""
    import av  # noqa: F401
    import boto3  # noqa: F401
    import fsspec  # noqa: F401
    import jinja2  # noqa: F401
    import pandas  # noqa: F401
    import PIL.Image  # noqa: F401
    import pyarrow.dataset
    import pyarrow.parquet  # noqa: F401
    import regex  # noqa: F401
    import requests  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch._dynamo
    import torch.distributed.fsdp
    import torch.utils.data  # noqa: F401
    import yaml  # noqa: F401


def _fork_for_each(requests: socket.socket, first: dict[str, Any]) -> None:
    """Import what reads the variables, and fork a process for each request."""
    os.environ.clear()
    os.environ.update({**first["environment"], "OMP_NUM_THREADS": "1"})
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if first["has_package"]:
        import datasets  # noqa: F401
        import matplotlib.figure  # noqa: F401
        import modeling_cover.evaluation.evaluator
        import modeling_cover.hub.publishing
        import modeling_cover.training.from_recipe
        import modeling_cover.training.trainer  # noqa: F401
    else:
        sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
        # Where the wheels of torch and torchvision do not go together, transformers' pipelines cannot be imported at
        # all, with or without this package; only there does this do anything, as long as it is kept.
        mended = runpy.run_path(str(Path(__file__).parents[2] / "modeling_cover" / "_torchvision.py"))  # noqa: F841
        import transformers.pipelines  # noqa: F401
    children = set()
    while True:
        request, (connection, *files) = _receive(requests)
        children -= {child for child in children if os.waitpid(child, os.WNOHANG)[0]}
        child = os.fork()
        if child == 0:
            requests.close()
            _run(request, socket.socket(fileno=connection), files)
        children.add(child)
        for file in (connection, *files):
            os.close(file)


def _send(to: socket.socket, request: dict[str, Any], files: list[int]) -> None:
    data = json.dumps(request).encode()
    socket.send_fds(to, [len(data).to_bytes(8, "big")], files)
    to.sendall(data)


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    size, files, _, _ = socket.recv_fds(connection, 8, 1 + MOST_FILES)
    data, length = b"", int.from_bytes(size, "big")
    while len(data) < length:
        data += connection.recv(min(2**16, length - len(data)))
    return json.loads(data), files


def _run(request: dict[str, Any], connection: socket.socket, files: list[int]) -> None:
    """Run a script or code as `python` does, and tell the exit code."""
    wanted = request["files"]
    connection = socket.socket(fileno=_out_of_the_way(connection.detach(), wanted))
    for number, file in zip(wanted, [_out_of_the_way(file, wanted) for file in files], strict=True):
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    random.seed()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    code = 0
    try:
        _run_main(request["arguments"])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(bytes([code]))
    os._exit(code)


def _out_of_the_way(file: int, wanted: list[int]) -> int:
    """The same open file with a number above all that are wanted."""
    moved = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, max(wanted) + 1)
    os.close(file)
    return moved


def _run_main(arguments: list[str]) -> None:
    what, *rest = arguments
    if what == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)  # noqa: S102
    elif what == "-m":
        sys.argv, sys.path[0] = rest, os.getcwd()
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = arguments, os.path.dirname(os.path.abspath(what))
        runpy.run_path(os.path.abspath(what), run_name="__main__")


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
