"""Getting into a computer behind a real ssh server on the loopback device: keys, passwords, host keys, addresses, words."""

from __future__ import annotations

import asyncio
import platform
import time

import pytest

pytest.importorskip("asyncssh", reason="pip install 'cactus-edge[device]'")

from ssh_kit import PASSWORD, Server

from cactus_edge.device.ssh import Remote, SshAddress, on_device
from cactus_edge.errors import (
    DeviceHostKeyError,
    DeviceLoginError,
    DeviceNotFoundError,
    DeviceSilentError,
    InputError,
    InternalError,
)


async def nothing(remote: Remote) -> str:
    return (await remote.run(["uname", "-m"], 10)).stdout.strip()


def test_a_command_runs(serve) -> None:
    assert on_device(serve().address, nothing) == platform.machine()


def test_a_command_is_watched_beside_others_and_ended_with_them(serve) -> None:
    async def work(remote: Remote) -> tuple[list[str], list[str]]:
        async with remote.watch(["yes", "beside"]) as lines, remote.watch(["no-such-command"]) as none:
            await remote.run(["sleep", "0.3"], 10)
        seen = len(lines)
        await remote.run(["sleep", "0.2"], 10)
        assert len(lines) == seen
        return lines, none

    server = serve()
    lines, none = on_device(server.address, work)
    assert set(lines) == {"beside\n"} and none == []
    assert ended(server)


def test_a_command_that_takes_too_long_is_ended_there(serve) -> None:
    async def work(remote: Remote) -> None:
        await remote.run(["sleep", "60"], 0.3)

    server = serve()
    with pytest.raises(DeviceSilentError, match="sleep did not end"):
        on_device(server.address, work)
    assert ended(server)


def ended(server: Server) -> bool:
    """Whether no command runs there any more, in a moment."""
    for _ in range(200):
        if not server.running():
            return True
        time.sleep(0.05)
    return False


def test_an_unknown_host_is_refused_with_the_command_that_adds_it(serve) -> None:
    server = serve()
    fingerprint = server.host_key.get_fingerprint()
    server.known_hosts.write_text("")
    with pytest.raises(DeviceHostKeyError, match="is not in known_hosts") as caught:
        on_device(server.address, nothing)
    assert fingerprint in caught.value.message
    assert f"ssh-keyscan -p {server.port} 127.0.0.1 >> ~/.ssh/known_hosts" in caught.value.hint
    assert not server.behaviour.commands


def test_a_changed_host_key_is_another_error(serve) -> None:
    import asyncssh

    server = serve()
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    server.known_hosts.write_text(f"[127.0.0.1]:{server.port} {other}")
    with pytest.raises(DeviceHostKeyError, match="another host key") as caught:
        on_device(server.address, nothing)
    assert f"ssh-keygen -R '[127.0.0.1]:{server.port}'" in caught.value.hint


def test_a_refused_key(serve) -> None:
    server = serve(keys=False)
    with pytest.raises(DeviceLoginError, match="refuses") as caught:
        on_device(server.address, nothing)
    assert f"ssh-copy-id -p {server.port} pi@127.0.0.1" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("id_ed25519", "garbage", "Invalid private key"),
        ("config", "Port abc", "config line 1: Invalid Port"),
        ("known_hosts", "@revoked", "Invalid known hosts entry"),
    ],
    ids=["key", "config", "known hosts"],
)
def test_what_in_the_users_folder_cannot_be_read_is_named(serve, name: str, content: str, message: str) -> None:
    server = serve()
    (server.home / ".ssh" / name).write_text(content + "\n")
    with pytest.raises(InputError, match=f"cannot be read: .*{message}"):
        on_device(server.address, nothing)
    assert not server.behaviour.commands


def test_a_key_with_a_passphrase_is_left_to_the_agent(serve) -> None:
    server = serve()
    server.user_key.write_private_key(server.home / ".ssh" / "id_ed25519", "pkcs8-pem", "secret")
    with pytest.raises(DeviceLoginError, match="refuses"):
        on_device(server.address, nothing)


def test_passwords(serve) -> None:
    server = serve(keys=False)
    asked: list[str] = []
    assert on_device(server.address, nothing, password=lambda who: asked.append(who) or PASSWORD) == platform.machine()
    assert asked == ["pi@127.0.0.1"]
    with pytest.raises(DeviceLoginError, match="refuses"):
        on_device(server.address, nothing, password=lambda who: "wrong")


def test_nobody_there() -> None:
    with pytest.raises(DeviceNotFoundError, match="cannot be reached"):
        on_device(SshAddress("127.0.0.1", "pi", 1), nothing)
    with pytest.raises(DeviceNotFoundError, match="cannot be reached"):
        on_device(SshAddress("no-such-host.invalid", "pi"), nothing)


ADDRESSES = {
    "pi@board": SshAddress("board", "pi"),
    "board": SshAddress("board"),
    "a.b@10.0.0.1:2222": SshAddress("10.0.0.1", "a.b", 2222),
    "[fe80::1]:22": SshAddress("fe80::1", "", 22),
    "pi@[fe80::1%eth0]": SshAddress("fe80::1%eth0", "pi"),
}


@pytest.mark.parametrize("text", ADDRESSES)
def test_addresses(text: str) -> None:
    assert SshAddress.parse(text) == ADDRESSES[text]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "pi@",
        "@host",
        "a b",
        "pi@host;reboot",
        "-oProxyCommand=x",
        "pi@host:0",
        "pi@host:99999",
        "$(x)",
        "::1",
        "[x]",
        "h\nh",
    ],
)
def test_bad_addresses(text: str) -> None:
    with pytest.raises(InputError, match="no address"):
        SshAddress.parse(text)


def test_what_to_type_names_ipv6_hosts_as_ssh_takes_them() -> None:
    assert SshAddress("::1", "pi", 2222).options == "-p 2222 pi@::1"
    assert str(SshAddress("::1", "pi", 2222)) == "pi@[::1]"


@pytest.mark.parametrize("word", ["a b", "$(reboot)", "a;b", "", "`x`", "a\nb", "*"])
def test_no_word_reaches_a_shell_that_it_could_interpret(serve, word: str) -> None:
    async def work(remote: Remote) -> None:
        await remote.run(["echo", word], 5)

    server = serve()
    with pytest.raises(InternalError, match="leaves alone"):
        on_device(server.address, work)
    assert not server.behaviour.commands


def test_inside_a_running_loop(serve) -> None:
    async def notebook() -> str:
        return on_device(server.address, nothing)

    server = serve()
    assert asyncio.run(notebook()) == platform.machine()
