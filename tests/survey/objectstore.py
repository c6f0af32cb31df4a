"""S3 servers on loopback that can be cut off in the middle of a request and come back with what they held.

`MotoServer` needs Python packages only (moto, flask) and is what the default suite uses: moto keeps its objects in
memory, so what dies and comes back is the connection in front of it, requests in flight included. `S3rverServer`
(npm's s3rver, where it is installed) keeps them on disk and is killed itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

KEY = "S3RVER"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(port: int, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return
        time.sleep(0.05)
    raise RuntimeError("the S3 server did not start")


class Front:
    """Passes connections on to another port of this machine until it is cut."""

    def __init__(self, port: int, behind: int):
        self.port, self.behind = port, behind
        self._open: list[socket.socket] = []
        self._listener: socket.socket | None = None

    def start(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        """Refuse new connections, break those there are."""
        listener, self._listener = self._listener, None
        if listener is not None:
            _break(listener)
        for each in self._open:
            _break(each)
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self.behind))
            except OSError:
                return
            self._open += [client, server]
            for a, b in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=(a, b), daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def _break(s: socket.socket) -> None:
    with contextlib.suppress(OSError):
        s.shutdown(socket.SHUT_RDWR)
    s.close()


class Server:
    """What the tests use of either server."""

    def __init__(self) -> None:
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Answer requests."""
        raise NotImplementedError

    def kill(self) -> None:
        """Answer no more, from one byte to the next; :meth:`start` comes back with what was held."""
        raise NotImplementedError

    def end(self) -> None:
        """The test is over."""
        self.kill()

    def environment(self) -> dict[str, str]:
        """Variables of clients."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": KEY,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


class MotoServer(Server):
    def __init__(self) -> None:
        super().__init__()
        behind = free_port()
        command = "import sys; from moto.server import main; main(sys.argv[1:])"
        self._process: Any = subprocess.Popen(
            [sys.executable, "-c", command, "-H", "127.0.0.1", "-p", str(behind)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(behind)
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{behind}",
            aws_access_key_id=KEY,
            aws_secret_access_key=KEY,
            region_name="us-east-1",
        )
        client.create_bucket(Bucket="surveys")
        self._front = Front(self.port, behind)

    def start(self) -> None:
        self._front.start()

    def kill(self) -> None:
        self._front.cut()

    def end(self) -> None:
        self.kill()
        self._process.kill()
        self._process.wait()


class S3rverServer(Server):
    def __init__(self, command: str, folder: Path):
        super().__init__()
        self.folder, self.command = folder, command
        self._process: subprocess.Popen | None = None
        folder.mkdir(exist_ok=True)

    def start(self) -> None:
        arguments = ["-d", str(self.folder), "-a", "127.0.0.1", "-p", str(self.port), "--configure-bucket", "surveys"]
        self._process = subprocess.Popen([self.command, *arguments, "--silent"], start_new_session=True)
        wait_for(self.port)

    def kill(self) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
