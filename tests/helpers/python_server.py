# SPDX-License-Identifier: Apache-2.0
"""A `python` that has imported everything already, for tests of many commands: each would import for ten seconds.

A server imports once, and for each command forks a process that runs the script as `python` would. What is called `python`
in [`PythonServer.folder`] asks it, with its own arguments, folder, environment and open files; `accelerate launch` of a
script without options, which starts one process, does, too.
"""

import atexit
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path


CLIENT = """#!{python} -ES
import json, os, socket, sys
arguments = sys.argv[1:]
if os.path.basename(sys.argv[0]) == "accelerate":
    if arguments[0] != "launch" or not arguments[1].endswith(".py"):
        os.execv({accelerate!r}, [{accelerate!r}, *arguments])
    arguments = arguments[1:]
elif not arguments or not arguments[0].endswith(".py"):
    os.execv({python!r}, [{python!r}, *arguments])
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = dict(arguments=arguments, folder=os.getcwd(), environment=dict(os.environ))
data = json.dumps(request).encode()
socket.send_fds(server, [len(data).to_bytes(8, "big")], [0, 1, 2])
server.sendall(data)
answer = server.recv(1)
sys.exit(answer[0] if answer else 1)
"""


class PythonServer:
    """
    Args:
        folder: where `python` and the server's socket are put.
        environment: of the server, which reads some of it as it imports.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]):
        self.folder, address = folder, str(folder / "socket")
        folder.mkdir(parents=True)
        accelerate = str(Path(sys.executable).with_name("accelerate"))
        for name in ("python", "accelerate"):
            client = folder / name
            client.write_text(CLIENT.format(python=sys.executable, accelerate=accelerate, address=address))
            client.chmod(0o755)
        environment = {**environment, "OMP_NUM_THREADS": "1"}  # a pool of threads would not outlive a fork
        self._process = subprocess.Popen([sys.executable, __file__, address], env=environment)
        while not os.path.exists(address):
            if self._process.poll() is not None:
                raise RuntimeError("the server has ended")
            time.sleep(0.1)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def serve(address: str) -> None:
    import datasets  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import modeling_cover.evaluation.evaluator
    import modeling_cover.hub.publishing
    import modeling_cover.training.from_recipe
    import modeling_cover.training.trainer  # noqa: F401

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen()
    os.rename(f"{address}.new", address)
    children = set()
    while True:
        connection, _ = listener.accept()
        children -= {child for child in children if os.waitpid(child, os.WNOHANG)[0]}
        child = os.fork()
        if child == 0:
            listener.close()
            _run(connection)
        children.add(child)
        connection.close()


def _run(connection: socket.socket) -> None:
    """Runs a script as `python` does, in a process of its own, and tells its exit code."""
    size, files, _, _ = socket.recv_fds(connection, 8, 3)
    data = b""
    while len(data) < int.from_bytes(size, "big"):
        data += connection.recv(2**16)
    request = json.loads(data)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    script = os.path.abspath(request["arguments"][0])
    sys.argv, sys.path[0] = request["arguments"], os.path.dirname(script)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(bytes([code]))
    os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
