from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading

import pytest

from ddump_merger import resolver as module
from ddump_merger.resolver import Resolver


def answering(monkeypatch, *, wait=None):
    """Let names be looked up here; return those that were asked for."""
    asked = []

    def getaddrinfo(host, port, **_):
        asked.append(host)
        if wait is not None:
            wait.wait(5)
        if host == "none":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", port)),
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1", port, 0, 1)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


async def until(condition):
    """Let threads go on until something holds; the test's timeout bounds it."""
    while not condition():  # noqa: ASYNC110  # what is watched has no event
        await asyncio.sleep(0)


async def test_a_name_of_this_host():
    resolver = Resolver()
    found = await resolver.resolve("localhost", 8475)
    assert all(ipaddress.ip_address(each["host"]).is_loopback for each in found)
    assert {each["port"] for each in found} == {8475}
    assert {each["hostname"] for each in found} == {"localhost"}
    await resolver.close()


async def test_addresses_are_numbers_with_their_zone(monkeypatch):
    answering(monkeypatch)
    found = await Resolver().resolve("web1", 80)
    zone = socket.if_indextoname(1)
    assert [each["host"] for each in found] == ["10.0.0.1", f"fe80::1%{zone}"]
    assert [each["family"] for each in found] == [socket.AF_INET, socket.AF_INET6]


async def test_a_name_that_does_not_exist(monkeypatch):
    answering(monkeypatch)
    with pytest.raises(socket.gaierror, match="not known"):
        await Resolver().resolve("none")


async def test_names_do_not_queue_behind_a_dead_server(monkeypatch):
    release = threading.Event()
    asked = answering(monkeypatch, wait=release)
    resolver = Resolver()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        for n in range(30):
            tasks.create_task(resolver.resolve(f"web{n}"))
        await until(lambda: len(asked) == 30)
        release.set()


async def test_threads_are_bounded(monkeypatch):
    monkeypatch.setattr(module, "_MOST_LOOKUPS", 2)
    release = threading.Event()
    asked = answering(monkeypatch, wait=release)
    resolver = Resolver()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        for n in range(5):
            tasks.create_task(resolver.resolve(f"web{n}"))
        await until(lambda: len(asked) == 2)
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(asked) == 2
        release.set()
    assert len(asked) == 5


@pytest.mark.parametrize("name", ["web1", "none"])
async def test_nobody_waits_for_what_nobody_wants(monkeypatch, name):
    release = threading.Event()
    answering(monkeypatch, wait=release)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await Resolver().resolve(name)
    thread = lookup()
    assert thread.daemon
    release.set()
    await asyncio.to_thread(thread.join, 5)
    await asyncio.sleep(0)  # the late answer is let go


def test_an_answer_after_the_loop_was_closed(monkeypatch):
    release = threading.Event()
    answering(monkeypatch, wait=release)

    async def give_up():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await Resolver().resolve("web1")

    asyncio.run(give_up())
    thread = lookup()
    release.set()
    thread.join(5)
    assert not thread.is_alive()


def lookup():
    (thread,) = [t for t in threading.enumerate() if t.name.startswith("look up ")]
    return thread
