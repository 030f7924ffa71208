"""A Python that has imported torch already, for tests that start processes: the fixture `python`.

Most of what a command of a tiny model takes is the import of torch. So one server imports it, nothing of gencli, and
each process is a fork of it with the arguments, environment, working directory and standard streams of its client. The
client passes signals on to the fork, ends as it ends, and takes it along when it is killed.

What a Python and its libraries read as they start is the server's: OMP_NUM_THREADS, which standard streams are closed.
A test of these starts `sys.executable`.
"""

import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from types import FrameType

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def ask(address: str, arguments: list[str]) -> int:
    """The client: have a process run and return its exit code, negative for a signal."""
    server = socket.socket(socket.AF_UNIX)
    server.connect(address)
    pid = 0
    early: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        if pid:
            os.kill(pid, number)
        else:
            early.append(number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    request = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(request)
    answers = server.makefile()
    pid = int(answers.readline())
    for number in early:
        os.kill(pid, number)
    os.closerange(0, 3)  # who reads what the fork writes sees the end of it when the fork ends
    return int(answers.readline())


def serve(address: str) -> list[str]:
    """The server: fork for each client, until standard input ends. Returns in the forks, with their arguments."""
    import torch  # noqa: F401

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            os._exit(0)
        connection, _ = listener.accept()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not os.fork():
            listener.close()
            return attend(connection)
        connection.close()


def attend(connection: socket.socket) -> list[str]:
    """Fork once more; the one process waits for the other, which takes the place of the client."""
    length, streams, _, _ = socket.recv_fds(connection, 4, 3)
    with connection.makefile("rb") as incoming:
        arguments, folder, environment = json.loads(incoming.read(int.from_bytes(length, "big")))
    pid = os.fork()
    if pid:
        for descriptor in streams:
            os.close(descriptor)
        connection.sendall(f"{pid}\n".encode())
        ended, gone = os.pidfd_open(pid), connection
        if gone in select.select([ended, gone], [], [])[0]:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        try:
            connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        finally:
            os._exit(0)
    connection.close()
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    sys.stdin = os.fdopen(0, encoding=encoding, closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding=encoding, closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding=encoding, errors="backslashreplace", closefd=False)
    sys.path[:0] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    return arguments


def main(arguments: list[str]) -> None:
    """What `python ARGUMENTS` does: `-c CODE ...`, `-m MODULE ...` or `FILE ...`."""
    import runpy

    match arguments:
        case ["-c", code, *rest]:
            sys.path.insert(0, "")
            sys.argv = ["-c", *rest]
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        case ["-m", module, *rest]:
            sys.path.insert(0, os.getcwd())
            sys.argv = ["-m", *rest]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case [path, *rest]:
            sys.path.insert(0, os.path.dirname(path))
            sys.argv = [path, *rest]
            runpy.run_path(path, run_name="__main__")


if __name__ == "__main__":
    role, address, *arguments = sys.argv[1:]
    if role == "serve":
        main(serve(address))
    else:
        code = ask(address, arguments)
        if code < 0:
            if -code in PASSED_ON:
                signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        os._exit(code)
