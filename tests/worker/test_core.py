"""What a request for a window becomes, before anything is read."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ddump_common.api import Link, RingQuery
from ddump_common.errors import FilterError, ParameterError
from ddump_worker.access import Access, Grant, Rule
from ddump_worker.capacity import ExhaustedError
from ddump_worker.core import Core
from ddump_worker.denial import ForbiddenError
from ddump_worker.exclusion import Exclusion
from ddump_worker.filters import FilterCompiler
from ddump_worker.interfaces import interfaces
from ddump_worker.streams import Streams
from ddump_worker.window import NoRingError
from support.orders import order


class Windows:
    """Plans whatever it is asked for."""

    full = False

    def check(self):
        if self.full:
            raise ExhaustedError("windows", "all are in use")

    async def plan(self, query, *, now_ns, oldest_ns):
        return query, now_ns, oldest_ns


def core(*, link=Link.SLL2, **given) -> Core:
    recording = SimpleNamespace(
        windows=Windows(),
        interfaces=lambda: {"eth0": {2, 3}, "lo": {1}},
        indices=frozenset({4}),
    )
    parts = dict.fromkeys(
        ["captures", "connections", "door", "exclusion", "metrics", "started_ns"]
    )
    return Core(
        **parts
        | {
            "config": SimpleNamespace(ring_link=link),
            "access": Access(),
            "streams": Streams(),
            "filters": FilterCompiler(),
            "recording": recording,
        }
        | given
    )


async def planned(core, *, granted=None, **query):
    asked = order(RingQuery(**query), **(granted or {}))
    if granted:
        core.access.replace([Rule(identities=("anonymous",), grant=asked.grant)])
    plan, window = await core.plan_window(asked, now_ns=7)
    assert window == (asked.query, 7, asked.oldest_ns(7))
    return plan.program


async def compiled(expression: str, *parts: str) -> bytes:
    return await FilterCompiler().compile(
        expression, exclusions=parts, link_type=276, snaplen=262144, stored=True
    )


async def test_without_a_filter_there_is_no_program():
    assert await planned(core(), filter="  ") == b""


async def test_a_filter_is_for_the_ring_s_link_type_whatever_is_asked_for():
    program = await planned(core(), filter="udp", link=Link.SLL, snaplen=1)
    assert program == await compiled("udp")


async def test_an_interface_is_all_indices_that_it_had():
    program = await planned(core(), filter="udp", interfaces=("eth0", "lo"))
    expected = await compiled("udp", "ifindex 1 or ifindex 2 or ifindex 3")
    assert program == expected
    program = await planned(core(), interfaces=("lo",))
    assert program == await compiled("", "ifindex 1")


async def test_what_is_followed_is_of_its_interfaces_or_the_ring_s_on_this_host():
    for names, indices in (("eth0",), {2, 3}), ((), {4}):
        query = RingQuery(interfaces=names, follow=True)
        plan, _ = await core().plan_window(order(query), now_ns=7)
        assert plan.chosen == indices
        assert plan.host == interfaces()
    plan, _ = await core().plan_window(order(RingQuery()), now_ns=7)
    assert plan.host == []


async def test_an_interface_that_the_ring_never_had():
    with pytest.raises(ParameterError, match="there are eth0, lo"):
        await planned(core(), interfaces=("lo", "eth7"))


async def test_an_interface_where_the_ring_keeps_none():
    with pytest.raises(ParameterError, match="--ring-link sll2"):
        await planned(core(link=Link.SLL), interfaces=("lo",))


async def test_a_filter_that_does_not_compile():
    with pytest.raises(FilterError):
        await planned(core(), filter="a b c")


async def test_too_many_windows_are_refused_before_anything_is_compiled():
    full = core(filters=None)
    full.recording.windows.full = True
    with pytest.raises(ExhaustedError):
        await planned(full, filter="udp")


async def test_without_a_ring_there_is_none():
    with pytest.raises(NoRingError):
        await planned(core(recording=None))


async def test_the_rule_s_filter_holds_for_whatever_is_asked():
    rule = {"filter": "not port 22"}
    assert await planned(core(), granted=rule) == await compiled("", "not port 22")
    program = await planned(core(), granted=rule, filter="udp", interfaces=("lo",))
    assert program == await compiled("udp", "not port 22", "ifindex 1")


async def test_how_far_back_it_goes_is_counted_from_the_request():
    asked = order(RingQuery(), max_age_ns=5)
    rules = Access([Rule(identities=("anonymous",), grant=asked.grant)])
    parts = core(access=rules)
    _, (_, now_ns, oldest_ns) = await parts.plan_window(asked, now_ns=7)
    assert (now_ns, oldest_ns) == (7, 2)


async def test_too_many_streams_are_refused_before_anything_is_compiled():
    parts = core(filters=None)
    asked = order(RingQuery(filter="udp"), max_streams=1)
    parts.streams.open(order=asked, started_ns=1)
    with pytest.raises(ForbiddenError):
        await parts.plan_window(asked, now_ns=7)
    with pytest.raises(ForbiddenError):
        await parts.plan(asked)


@pytest.mark.parametrize("is_window", [True, False])
async def test_rules_that_change_while_it_is_planned_are_the_ones_that_hold(
    is_window,
):
    access = Access([Rule(identities=("anonymous",), grant=Grant())])

    async def compiling(*_, **__):
        changed = Grant(filter="not port 22")
        access.replace([Rule(identities=("anonymous",), grant=changed)])
        return b""

    parts = core(
        access=access,
        filters=SimpleNamespace(compile=compiling),
        captures=SimpleNamespace(check=lambda: None),
        exclusion=Exclusion(),
    )
    asked = order(RingQuery(filter="udp"))
    with pytest.raises(ForbiddenError, match="has changed meanwhile"):
        await (parts.plan_window(asked, now_ns=7) if is_window else parts.plan(asked))
