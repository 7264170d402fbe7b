"""The description of what the worker serves: an OpenAPI 3.1 document.

It is made of the contract: the limits of parameters and the shapes of answers are those
that the worker itself goes by. What no schema can say, as whether a filter compiles, is
in words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ddump_common.answers import (
    Health,
    InterfaceInfo,
    Problem,
    Segments,
    Status,
)
from ddump_common.api import (
    CAPTURE_PATH,
    HEALTH_PATH,
    HOST_HEADER,
    INTERFACES_PATH,
    MAX_COUNT,
    MAX_FILTER_BYTES,
    MAX_INTERFACES,
    MEDIA_TYPE_PCAP,
    MEDIA_TYPE_PCAPNG,
    MEDIA_TYPE_PROBLEM,
    METRICS_PATH,
    OPENAPI_PATH,
    RING_HEADER,
    RING_PATH,
    SEGMENTS_PATH,
    STATUS_PATH,
    STREAM_HEADER,
    TIME_HEADER,
    WINDOW_HEADER,
    Link,
)
from ddump_common.pcap import MAX_SNAPLEN, Precision

from . import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["document"]

_Json = dict[str, object]

_COUNT: _Json = {"type": "integer", "minimum": 1, "maximum": MAX_COUNT}
_DURATION: _Json = {"type": "string", "examples": ["5", "250ms", "1h30m"]}
_TIME: _Json = {
    "type": "string",
    "examples": ["2026-11-22T14:03:00Z", "1795356180.5", "-5m"],
}

_PARAMETERS: dict[str, tuple[_Json, str]] = {
    "filter": (
        {"type": "string", "maxLength": MAX_FILTER_BYTES, "examples": ["udp port 53"]},
        f"BPF expression, at most {MAX_FILTER_BYTES} bytes, without NUL.",
    ),
    "interface": (
        {
            "type": "array",
            "maxItems": MAX_INTERFACES,
            "items": {"type": "string", "minLength": 1, "maxLength": 15},
        },
        "Only the interface of this name; repeatable.",
    ),
    "snaplen": (
        {"type": "integer", "minimum": 1, "maximum": MAX_SNAPLEN},
        "Bytes kept of each packet.",
    ),
    "packets": (_COUNT, "End after so many packets."),
    "bytes": (_COUNT, "End with the packet that reaches so many bytes of data."),
    "duration": (_DURATION, "End after that time; plain numbers are seconds."),
    "idle": (_DURATION, "End when nothing came for that time."),
    "link": (
        {"enum": [each.value for each in Link], "default": Link.SLL.value},
        "The link type: LINUX_SLL, or LINUX_SLL2, which keeps the interface.",
    ),
    "precision": (
        {
            "enum": [each.value for each in Precision],
            "default": Precision.MICRO.value,
        },
        "Of the timestamps in classic pcap; pcapng always has nanoseconds.",
    ),
}
_WINDOW_PARAMETERS: dict[str, tuple[_Json, str]] = {
    "since": (
        _TIME,
        "Begin there: RFC 3339, seconds since the epoch, or relative to now.",
    ),
    "until": (_TIME, "End before that time."),
    "last": (_DURATION, "Begin so long ago, in place of since."),
    "follow": (
        {"enum": ["", "1", "true", "0", "false"]},
        "Go on live after the window.",
    ),
}

_HEADERS: dict[str, tuple[_Json, str]] = {
    HOST_HEADER: ({"type": "string"}, "The host that answers."),
    TIME_HEADER: (
        {"type": "string", "pattern": "^[0-9]+$"},
        "When it does, in nanoseconds since the epoch.",
    ),
    STREAM_HEADER: (
        {"type": "string", "pattern": "^[0-9]+$"},
        "The number of this stream in the worker's status.",
    ),
    WINDOW_HEADER: (
        {"type": "string"},
        "What of the window the ring has, a structured field (RFC 9651).",
    ),
    RING_HEADER: (
        {"type": "string"},
        "What the ring keeps, a structured field (RFC 9651).",
    ),
    "WWW-Authenticate": ({"type": "string"}, "How to say who asks."),
    "Retry-After": (
        {"type": "string", "pattern": "^[0-9]+$"},
        "After how many seconds to come again, where that may help.",
    ),
}
_OF_ALL = (HOST_HEADER, TIME_HEADER)

_PROBLEMS: dict[int, tuple[str, tuple[str, ...]]] = {
    400: ("Something in the request cannot be.", ()),
    401: ("Nobody knows who asks, or what was shown is wrong.", ("WWW-Authenticate",)),
    403: (
        "Who asks may not do that, or not as much of it, or not now.",
        ("Retry-After",),
    ),
    404: ("This worker keeps no ring.", ()),
    416: ("The ring has nothing of this window.", (WINDOW_HEADER,)),
    421: ("The request is for another host.", ()),
    500: ("This host cannot capture.", ()),
    503: ("Nothing is free at the moment.", ("Retry-After",)),
}
_COMMON = (400, 401, 403, 421)
_STREAMED = (*_COMMON, 500, 503)

_JSON = "application/json"
_PACKETS: _Json = {
    MEDIA_TYPE_PCAP: {"schema": {"type": "string", "format": "binary"}},
    MEDIA_TYPE_PCAPNG: {"schema": {"type": "string", "format": "binary"}},
}
_TEXT: _Json = {"text/plain": {"schema": {"type": "string"}}}


def document() -> bytes:
    """Return the document, in JSON."""
    kinds = (Health, Status, Segments, list[InterfaceInfo], Problem)
    shapes, schemas = msgspec.json.schema_components(
        kinds, ref_template="#/components/schemas/{name}"
    )
    health, status, segments, interfaces, problem = (
        {_JSON: {"schema": each}} for each in shapes
    )
    window = {**_WINDOW_PARAMETERS, **_PARAMETERS}
    paths = {
        CAPTURE_PATH: _path(
            "Packets as they come, until a limit is reached or the client leaves.",
            _PACKETS,
            _STREAMED,
            parameters=_PARAMETERS,
        ),
        RING_PATH: _path(
            "Packets of a window of the ring, and live ones after it.",
            _PACKETS,
            (*_STREAMED, 404, 416),
            parameters=window,
            headers=(WINDOW_HEADER, RING_HEADER),
        ),
        HEALTH_PATH: _path("This process answers.", health, _COMMON, is_open=True),
        OPENAPI_PATH: _path(
            "This document.",
            {_JSON: {"schema": {"type": "object"}}},
            _COMMON,
            is_open=True,
        ),
        STATUS_PATH: _path("Streams, counters, limits, the ring.", status, _COMMON),
        SEGMENTS_PATH: _path("What the ring holds.", segments, _COMMON),
        INTERFACES_PATH: _path("This host's interfaces.", interfaces, _COMMON),
        METRICS_PATH: _path("The counters for Prometheus.", _TEXT, _COMMON),
    }
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "ddump-worker",
                "version": __version__,
                "license": {"name": "MIT", "identifier": "MIT"},
                "description": "Captures packets on this host, and remembers them.",
            },
            "paths": paths,
            "components": {
                "schemas": schemas,
                "headers": {
                    name: {"schema": schema, "description": text}
                    for name, (schema, text) in _HEADERS.items()
                },
                "responses": {
                    str(status): _response(
                        text, {MEDIA_TYPE_PROBLEM: problem[_JSON]}, headers
                    )
                    for status, (text, headers) in _PROBLEMS.items()
                },
                "securitySchemes": {
                    "token": {"type": "http", "scheme": "bearer"},
                    "certificate": {"type": "mutualTLS"},
                },
            },
        }
    )


def _path(
    text: str,
    content: Mapping[str, object],
    problems: Iterable[int],
    *,
    parameters: Mapping[str, tuple[_Json, str]] | None = None,
    headers: tuple[str, ...] = (),
    is_open: bool = False,
) -> _Json:
    refused: _Json = {
        str(status): {"$ref": f"#/components/responses/{status}"}
        for status in sorted(problems)
    }
    denied: _Json = {
        status: {"description": "Refused, as GET would be."} for status in refused
    }
    # What is shown has to be right, also where nothing needs to be.
    security: list[_Json] = [{"token": []}, {"certificate": []}, *([{}] * is_open)]
    streamed = (STREAM_HEADER,) if content is _PACKETS else ()
    return {
        "parameters": [
            {"name": name, "in": "query", "description": about, "schema": schema}
            for name, (schema, about) in (parameters or {}).items()
        ],
        "get": {
            "summary": text,
            "security": security,
            "responses": refused
            | {"200": _response("As asked.", content, (*headers, *streamed))},
        },
        "head": {
            "summary": "The same checks, and nothing else.",
            "security": security,
            "responses": denied | {"200": _response("It can be had.", {}, headers)},
        },
    }


def _response(
    text: str, content: Mapping[str, object], headers: tuple[str, ...]
) -> _Json:
    response: _Json = {
        "description": text,
        "headers": {
            name: {"$ref": f"#/components/headers/{name}"}
            for name in (*_OF_ALL, *headers)
        },
    }
    return {**response, "content": content} if content else response
