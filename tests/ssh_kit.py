"""A real ssh server on the loopback device, run by asyncssh in a thread of the test: the machine's own processes and files."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh

from cactus_edge.device.ssh import SshAddress

USER, PASSWORD = "pi", "raspberry"


@dataclass
class Behaviour:
    """How the server misbehaves. env: of the commands it runs. cut_at: the file whose opening breaks the connection.

    opened: told of every file that is opened by sftp.
    """

    env: Mapping[str, str] = field(default_factory=dict)
    cut_at: str = ""
    full: bool = False
    keys: bool = True
    kill: bool = False
    commands: list[str] = field(default_factory=list)
    opened: Callable[[str], object] = lambda path: None


class Server:
    """The running server; `address` and `known_hosts` are what a client needs."""

    def __init__(self, folder: Path, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.host_key = asyncssh.generate_private_key("ssh-ed25519")
        self.user_key = asyncssh.generate_private_key("ssh-ed25519")
        self.home = folder / "home"
        (self.home / ".ssh").mkdir(parents=True)
        self.user_key.write_private_key(self.home / ".ssh" / "id_ed25519")
        self.known_hosts = self.home / ".ssh" / "known_hosts"
        self.connections: list[asyncssh.SSHServerConnection] = []
        self._children: list[asyncio.subprocess.Process] = []
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Server:
        self._thread.start()
        assert self._started.wait(20)
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {self.host_key.export_public_key().decode()}")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    def running(self) -> int:
        """How many of the commands have not ended."""
        return sum(child.returncode is None for child in self._children)

    @property
    def address(self) -> SshAddress:
        return SshAddress("127.0.0.1", USER, self.port)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main())

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[self.host_key],
            server_factory=lambda: _Login(self),
            process_factory=self._process,
            sftp_factory=lambda channel: _Files(channel, self),
            encoding=None,
        )
        self.port = server.get_port()
        self._started.set()
        await self._stop.wait()
        server.close()
        for connection in self.connections:
            connection.abort()
        for child in self._children:
            if child.returncode is None:
                child.kill()
            await child.wait()
        await server.wait_closed()
        others = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), 10)

    def install(self, python: str) -> None:
        """Gives the account the Python of `python`, a shell command to be followed by arguments, where ours is looked for."""
        shim = self.home / ".cactus-edge" / "bin" / "python3"
        shim.parent.mkdir(parents=True)
        shim.write_text(f'#!/bin/sh\n{python} "$@"\n')
        shim.chmod(0o755)

    async def _process(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        """Runs the command as sshd does, by a shell in the user's home."""
        assert process.command is not None
        self.behaviour.commands.append(process.command)
        child = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", f"exec {process.command}", cwd=self.home, env={**os.environ, **self.behaviour.env},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self._children.append(child)

        def pass_on(name: str) -> None:
            if child.returncode is None:
                child.send_signal(signal.Signals[f"SIG{name}"])

        process.signal_received = pass_on  # type: ignore[method-assign]
        if self.behaviour.kill:
            child.kill()
        feeding = asyncio.create_task(self._feed(process, child))
        try:
            await asyncio.gather(self._copy(child.stdout, process.stdout), self._copy(child.stderr, process.stderr))
            status = await child.wait()
            if status < 0:
                process.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))
            else:
                process.exit(status)
        finally:
            feeding.cancel()  # like sshd, which leaves a process whose connection broke alone: it reads the end of its input

    async def _feed(self, process: Any, child: Any) -> None:
        try:
            while data := await process.stdin.read(4096):
                child.stdin.write(data)
                await child.stdin.drain()
        except (asyncssh.Error, OSError):
            pass
        finally:
            child.stdin.close()

    async def _copy(self, source: Any, to: Any) -> None:
        while data := await source.read(4096):
            with suppress(asyncssh.Error, OSError):
                to.write(data)


class _Login(asyncssh.SSHServer):
    def __init__(self, server: Server) -> None:
        self._server = server

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._server.connections.append(conn)

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return self._server.behaviour.keys

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        same: bool = key.public_data == self._server.user_key.public_data
        return username == USER and same

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return (username, password) == (USER, PASSWORD)


class _Files(asyncssh.SFTPServer):
    def __init__(self, channel: Any, server: Server) -> None:
        super().__init__(channel)
        self._behaviour, self._home = server.behaviour, os.fsencode(server.home)

    def map_path(self, path: bytes) -> bytes:
        return path if path.startswith(b"/") else self._home + b"/" + path

    def open(self, path: bytes, pflags: int, attrs: Any) -> Any:
        self._behaviour.opened(os.fsdecode(path))
        if self._behaviour.cut_at and path.endswith(self._behaviour.cut_at.encode()):
            self.channel.get_connection().abort()
        return super().open(path, pflags, attrs)

    def write(self, file_obj: object, offset: int, data: bytes) -> Any:
        if self._behaviour.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(file_obj, offset, data)
