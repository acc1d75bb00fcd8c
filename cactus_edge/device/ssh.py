"""A computer reached by ssh: its host key is checked, and no shell string is ever built from input.

`on_device(address, work)` logs in, gives `work` a `Remote` and tears everything down however `work` ends:

    async def work(remote: Remote) -> str:
        await remote.put("model.tflite", data)                             # into a fresh folder of its own, by sftp
        done = await remote.run(["trtexec", f"--onnx={remote.folder}/model.onnx"], timeout_s=60)
        return done.stdout

A command is a list of words, each of `SAFE` characters only, so that the remote shell has nothing to interpret. Files go
by sftp into one folder /tmp/cactus-edge-<random>, made here and removed at the end, also after a failure or Ctrl-C.
Every way to fail is an exception of its own, see `errors`. Keys, agents and ~/.ssh/config are OpenSSH's usual ones.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cactus_edge.errors import (
    DeviceError,
    DeviceFullError,
    DeviceGoneError,
    DeviceHostKeyError,
    DeviceLoginError,
    DeviceNotFoundError,
    DeviceSilentError,
    InputError,
    InstallError,
    InternalError,
)

if TYPE_CHECKING:
    import asyncssh

T = TypeVar("T")

SAFE = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")
"""Words that no shell interprets."""

_ADDRESS = re.compile(
    r"(?:([A-Za-z0-9_][A-Za-z0-9_.-]*)@)?([A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9]+)?\])(?::(\d{1,5}))?"
)

KEEPALIVE_S, KEEPALIVES = 10, 3
"""A connection whose other end stays silent for KEEPALIVES * KEEPALIVE_S seconds is gone."""

_CHUNK = 1 << 16

Password = Callable[[str], str | None]
"""Asked for the password of "user@host" once keys were refused; None gives up."""


@dataclass(frozen=True)
class SshAddress:
    """user@host:port. user "" and port 0: what ~/.ssh/config says, else this user and 22."""

    host: str
    user: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> SshAddress:
        """From "[user@]host[:port]", an IPv6 host in brackets. Raises InputError."""
        match = _ADDRESS.fullmatch(text)
        port = int(match[3] or 0) if match else 0
        if match is None or not (match[3] is None or 0 < port < 65536):
            hint = "user@host or user@host:port, for example pi@raspberrypi; an IPv6 host in brackets; a port is 1 to 65535"
            raise InputError(f"{text!r} is no address of a computer", hint=hint)
        return cls(match[2].strip("[]"), match[1] or "", port)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}" if self.user else host

    @property
    def options(self) -> str:
        """The same for the ssh command, which takes no brackets: `ssh OPTIONS`."""
        who = f"{self.user}@{self.host}" if self.user else self.host
        return f"-p {self.port} {who}" if self.port else who


@dataclass(frozen=True)
class Finished:
    """A command that ended. status: exit code, None where a `signal` ended it."""

    status: int | None
    signal: str
    stdout: str
    stderr: str


class Remote:
    """A computer that let us in, and our folder on it."""

    def __init__(
        self, connection: asyncssh.SSHClientConnection, sftp: asyncssh.SFTPClient, address: SshAddress
    ) -> None:
        self._connection, self._sftp, self.address = connection, sftp, address
        self.folder = f"/tmp/cactus-edge-{secrets.token_hex(8)}"

    async def put(self, name: str, data: bytes) -> None:
        """Writes our file `name`. DeviceFullError where there is no room."""
        import asyncssh

        try:
            room = await self._sftp.statvfs(self.folder)
            free = room.bavail * room.frsize
        except asyncssh.SFTPError:
            free = len(data)  # the server does not say: the write itself will
        if free < len(data):
            raise DeviceFullError(
                f"{self.address}: {name} needs {len(data):,} bytes in {self.folder}, {free:,} are free",
                hint="free space under /tmp on the device",
            )
        try:
            async with self._sftp.open(self._path(name), "wb") as stream:
                for at in range(0, len(data), _CHUNK):
                    await stream.write(data[at : at + _CHUNK])
        except (asyncssh.SFTPFailure, asyncssh.SFTPNoSpaceOnFilesystem, asyncssh.SFTPQuotaExceeded) as error:
            raise DeviceFullError(
                f"{self.address}: {name} cannot be written into {self.folder}: {error.reason or 'no space'}",
                hint="free space under /tmp on the device",
            ) from error

    async def get(self, name: str) -> bytes:
        """Our file `name`."""
        async with self._sftp.open(self._path(name), "rb") as stream:
            data: bytes = await stream.read()
        return data

    async def exists(self, path: str) -> bool:
        """Whether `path` is there, relative to the user's home."""
        return bool(await self._sftp.exists(path))

    async def run(self, words: Sequence[str], timeout_s: float) -> Finished:
        """Runs one command to its end, its input empty. DeviceSilentError after `timeout_s`."""
        async with self.start(words) as process:
            process.stdin.write_eof()
            try:
                async with asyncio.timeout(timeout_s):
                    out, err = await asyncio.gather(process.stdout.read(), process.stderr.read())
                    await process.wait_closed()
            except TimeoutError as error:
                raise DeviceSilentError(
                    f"{self.address}: {words[0]} did not end in {timeout_s:g} s", hint="is the device busy?"
                ) from error
            finally:
                _end(process)
            return finished(process, out, err)

    @asynccontextmanager
    async def start(self, words: Sequence[str]) -> AsyncIterator[asyncssh.SSHClientProcess[str]]:
        """A running command with text streams; it is ended with the context."""
        for word in words:
            if not SAFE.fullmatch(word):
                raise InternalError(f"{word!r} is no word that a remote shell leaves alone")
        process = await self._connection.create_process(" ".join(words), encoding="utf-8", errors="replace")
        try:
            yield process
        finally:
            process.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(_END_S):
                    await process.wait_closed()

    @asynccontextmanager
    async def watch(self, words: Sequence[str]) -> AsyncIterator[list[str]]:
        """The lines that a command has printed so far, while it runs beside others; empty where there is no such command."""
        lines: list[str] = []
        async with self.start(words) as process:

            async def read() -> None:
                while line := await process.stdout.readline():
                    lines.append(line)

            reading = asyncio.create_task(read())
            try:
                yield lines
            finally:
                _end(process)
                reading.cancel()
                with suppress(asyncio.CancelledError):
                    await reading

    def _path(self, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
            raise InternalError(f"{name!r} is no name of a file of ours")
        return f"{self.folder}/{name}"


_END_S = 5.0


def _end(process: asyncssh.SSHClientProcess[str]) -> None:
    """Asks a command to end, which else would go on there without anybody who listens."""
    with suppress(OSError):  # it ended by itself
        process.terminate()


def finished(process: asyncssh.SSHClientProcess[str], stdout: str, stderr: str) -> Finished:
    """How a process ended; DeviceGoneError where the connection ended with it."""
    signal = process.exit_signal[0] if process.exit_signal else ""
    if process.exit_status is None and not signal:
        raise DeviceGoneError(
            "the connection broke while a command ran", hint="check power and network, then run it again"
        )
    return Finished(None if signal else process.exit_status, signal, stdout, stderr)


def on_device(
    address: SshAddress,
    work: Callable[[Remote], Awaitable[T]],
    *,
    timeout_s: float = 15.0,
    password: Password | None = None,
    known_hosts: Sequence[Path] | None = None,
) -> T:
    """Logs in at `address`, runs `work`, cleans up, returns its result.

    timeout_s: for the connection and again for the login. known_hosts: files in OpenSSH's form, by default the user's and the
    system's. Raises DeviceNotFoundError, DeviceHostKeyError, DeviceLoginError, DeviceGoneError and what `work` raises.
    """
    if known_hosts is None:
        known_hosts = (Path.home() / ".ssh" / "known_hosts", Path("/etc/ssh/ssh_known_hosts"))
    files = tuple(known_hosts)

    async def main() -> T:
        with _translated(address):
            async with _login(address, timeout_s, password, files) as remote:
                return await work(remote)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(main())
    with ThreadPoolExecutor(1) as thread:  # in a notebook, whose own loop runs in this thread
        return thread.submit(asyncio.run, main()).result()


@asynccontextmanager
async def _login(
    address: SshAddress, timeout_s: float, password: Password | None, files: Sequence[Path]
) -> AsyncIterator[Remote]:
    asyncssh = _asyncssh()
    try:
        known = asyncssh.import_known_hosts("\n".join(_text(path) for path in files if path.is_file()))
    except ValueError as error:
        raise InputError(
            f"{' or '.join(map(str, files))} cannot be read: {error}", hint="mend or remove that line"
        ) from error

    class Client(asyncssh.SSHClient):  # type: ignore[misc, name-defined]
        async def password_auth_requested(self) -> str | None:
            nonlocal password
            ask, password = password, None
            return await asyncio.to_thread(ask, str(address)) if ask else None

    options: dict[str, Any] = {"port": address.port} if address.port else {}
    options |= {"username": address.user} if address.user else {}
    try:
        connection = await asyncssh.connect(
            address.host,
            known_hosts=known,
            client_factory=Client,
            connect_timeout=timeout_s,
            login_timeout=timeout_s if password is None else 0,
            keepalive_interval=KEEPALIVE_S,
            keepalive_count_max=KEEPALIVES,
            **options,
        )
    except asyncssh.HostKeyNotVerifiable as error:
        raise await _untrusted(address, known, timeout_s) from error
    except asyncssh.PermissionDenied as error:
        raise DeviceLoginError(
            f"{address} refuses this user: {error.reason}",
            hint=f"ssh-copy-id {address.options}, or check user name and password with ssh {address.options}",
        ) from error
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, asyncssh.ConfigParseError) as error:
        raise InputError(
            f"a key or the configuration in ~/.ssh cannot be read: {error}",
            hint=f"ssh -v {address.options} names the file",
        ) from error
    except TimeoutError as error:
        raise DeviceNotFoundError(
            f"{address} does not answer within {timeout_s:g} s", hint="is it switched on, and in this network?"
        ) from error
    except OSError as error:
        raise DeviceNotFoundError(
            f"{address} cannot be reached: {error.strerror or error}", hint=f"ssh {address.options}"
        ) from error
    async with connection, connection.start_sftp_client() as sftp:
        remote = Remote(connection, sftp, address)
        try:
            await sftp.mkdir(remote.folder, asyncssh.SFTPAttrs(permissions=0o700))
        except asyncssh.SFTPError as error:
            raise DeviceFullError(
                f"{address}: no folder can be made under /tmp: {error.reason}", hint="free space there"
            ) from error
        try:
            yield remote
        finally:
            # The agent removes the folder itself where the connection is gone.
            with suppress(asyncssh.Error, OSError, TimeoutError):
                async with asyncio.timeout(_END_S):
                    await sftp.rmtree(remote.folder, ignore_errors=True)


async def _untrusted(address: SshAddress, known: Any, timeout_s: float) -> DeviceHostKeyError:
    """Which of the two it is: a host never seen, or one whose key is another than the one that is known."""
    asyncssh = _asyncssh()
    port = address.port or 22
    pattern = f"[{address.host}]:{port}" if port != 22 else address.host
    if known.match(address.host, "", port)[0]:
        return DeviceHostKeyError(
            f"{address} shows another host key than the one in known_hosts: it was set up anew, or somebody is in between",
            hint=f"only if you know why: ssh-keygen -R '{pattern}', then connect again",
        )
    shown = "its key"
    with suppress(asyncssh.Error, OSError, TimeoutError):
        async with asyncio.timeout(timeout_s):
            key = await asyncssh.get_server_host_key(address.host, port)
            if key is not None:
                shown = f"{key.algorithm.decode()} {key.get_fingerprint()}"
    return DeviceHostKeyError(
        f"{address} is not in known_hosts; it shows {shown}",
        hint=f"if the device itself shows that fingerprint: ssh-keyscan -p {port} {address.host} >> ~/.ssh/known_hosts",
    )


@contextmanager
def _translated(address: SshAddress) -> Iterator[None]:
    """The library's errors during the work as ours."""
    asyncssh = _asyncssh()
    try:
        yield
    except (asyncssh.ConnectionLost, asyncssh.DisconnectError, asyncssh.ChannelOpenError, asyncssh.SFTPConnectionLost,
            asyncssh.SFTPNoConnection) as error:  # fmt: skip
        raise DeviceGoneError(
            f"the connection to {address} broke: {error.reason}", hint="check power and network, then run it again"
        ) from error
    except asyncssh.SFTPError as error:
        raise DeviceError(
            f"{address}: sftp: {error.reason}", hint="does its ssh server offer sftp, and /tmp room?"
        ) from error
    except asyncssh.Error as error:
        raise DeviceError(f"{address}: {error.reason}", hint=f"ssh {address.options}") from error
    except (BrokenPipeError, ConnectionError) as error:
        raise DeviceGoneError(
            f"the connection to {address} broke: {error}", hint="check power and network, then run it again"
        ) from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}", hint=f"chmod u+r {path}") from error


def _asyncssh() -> Any:
    try:
        import asyncssh
    except ImportError as error:
        raise InstallError("devices by ssh need asyncssh", hint="pip install 'cactus-edge[device]'") from error
    return asyncssh
