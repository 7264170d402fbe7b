"""Which of its two formats a worker answers with: what ``Accept`` says (RFC 9110, 12.5.1).

Classic pcap, unless the client names pcapng itself: ``*/*`` is what every client says.
What cannot be read is as if nothing had been said.
"""

from __future__ import annotations

import re

from ddump_common.api import MEDIA_TYPE_PCAP, MEDIA_TYPE_PCAPNG

__all__ = ["prefers_pcapng"]

# Nothing is tried twice (*+, ++): hostile spaces would take for ever.
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_SPACE = r"[ \t]*+"
_QUOTED = r'"(?:[^"\\]|\\.)*+"'
_RANGE = re.compile(
    rf"{_SPACE}(?P<type>{_WORD}/{_WORD})"
    rf"(?P<parameters>(?:{_SPACE};{_SPACE}(?:{_WORD}=(?:{_WORD}|{_QUOTED}))?)*+)"
    rf"{_SPACE}(?:,|$)"
)
_NOTHING = re.compile(rf"{_SPACE}(?:,|$)")
_PARAMETER = re.compile(rf"({_WORD})=({_WORD}|{_QUOTED})")
_WEIGHT = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?", re.ASCII)


def prefers_pcapng(accept: str) -> bool:
    """Return whether ``accept``, a field's value, asks for pcapng before classic pcap."""
    weights = _weights(accept)
    pcapng = weights.get(MEDIA_TYPE_PCAPNG, 0.0)
    # Of several ranges that match, the most specific one counts.
    for each in (MEDIA_TYPE_PCAP, "application/*", "*/*"):
        if each in weights:
            return pcapng > 0 and pcapng >= weights[each]
    return pcapng > 0


def _weights(accept: str) -> dict[str, float]:
    """Return the weight of each media range; none when one of them is malformed."""
    weights: dict[str, float] = {}
    at = 0
    while at < len(accept):
        if match := _NOTHING.match(accept, at):  # empty elements of a list are allowed
            at = match.end()
            continue
        match = _RANGE.match(accept, at)
        if match is None:
            return {}
        at = match.end()
        weight = 1.0
        narrowed = False
        for name, value in _PARAMETER.findall(match["parameters"]):
            if name.lower() == "q":
                if not _WEIGHT.fullmatch(value):
                    return {}
                weight = float(value)
                break  # what follows the weight is no parameter of the type
            narrowed = True
        if not narrowed:  # neither format has parameters
            name = match["type"].lower()
            weights[name] = max(weight, weights.get(name, 0.0))
    return weights
