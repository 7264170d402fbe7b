"""Places for which hosts compete."""

from __future__ import annotations

import asyncio

import pytest

from ddump_worker.places import Places


class Holder:
    """Somebody who holds a place until told to go."""

    def __init__(self, places: Places, host: str, tasks: asyncio.TaskGroup) -> None:
        self.lost = False
        self.leaving = asyncio.Event()
        self.task = tasks.create_task(self._hold(places, host))

    async def _hold(self, places: Places, host: str) -> None:
        until = asyncio.get_running_loop().time() + 10
        try:
            async with places.hold(host, until=until):
                await self.leaving.wait()
        except TimeoutError:
            self.lost = True


async def holding(places: Places, hosts: str, tasks: asyncio.TaskGroup) -> list[Holder]:
    """Have each of the hosts take a place, in turn; and let those go who lose theirs."""
    holders = []
    for host in hosts:
        holders.append(Holder(places, host, tasks))
        for _ in range(5):
            await asyncio.sleep(0)
    return holders


@pytest.mark.parametrize(
    ("hosts", "lost"),
    [
        ("aaa", []),
        ("aaab", [0]),
        ("aaaa", [0]),
        ("aabbb", [0, 2]),
        ("baac", [1]),
        ("abcd", [0]),
        ("aaabcd", [0, 1, 2]),
    ],
)
async def test_the_host_that_has_most_loses_its_oldest(hosts, lost):
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        holders = await holding(Places(3), hosts, tasks)
        assert [n for n, each in enumerate(holders) if each.lost] == lost
        for each in holders:
            each.leaving.set()
    assert [n for n, each in enumerate(holders) if each.lost] == lost


async def test_whoever_leaves_makes_room():
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        places = Places(2)
        first, second = await holding(places, "aa", tasks)
        first.leaving.set()
        second.task.cancel()
        await asyncio.wait([first.task, second.task])
        for each in await holding(places, "bc", tasks):
            each.leaving.set()
            assert not each.lost


async def test_a_place_is_held_for_a_while():
    places = Places(1)
    with pytest.raises(TimeoutError):
        async with places.hold("a", until=asyncio.get_running_loop().time() + 0.05):
            await asyncio.Event().wait()
