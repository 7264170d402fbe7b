"""The OpenAPI document, held against what the worker really takes and answers."""

from __future__ import annotations

import json
import re

import pytest

from ddump_common.api import CaptureQuery, RingQuery
from ddump_common.errors import ParameterError
from ddump_worker.app import create_app
from ddump_worker.openapi import document

PATHS = json.loads(document())["paths"]
COMPONENTS = json.loads(document())["components"]
PARAMETERS = {each["name"]: each["schema"] for each in PATHS["/ring"]["parameters"]}


def read(name: str, value: str) -> None:
    RingQuery.parse_at([(name, value)], now_ns=10**18)


def test_it_has_the_paths_and_methods_that_there_are():
    routes = {(route.method, route.resource.canonical) for route in create_app(
        None
    ).router.routes()}  # fmt: skip
    described = {
        (method.upper(), path)
        for path, item in PATHS.items()
        for method in item
        if method != "parameters"
    }
    assert described == routes


@pytest.mark.parametrize(
    ("path", "parse"),
    [
        ("/capture", CaptureQuery.parse),
        ("/ring", lambda pairs: RingQuery.parse_at(pairs, now_ns=1)),
    ],
)
def test_it_has_the_parameters_that_there_are(path, parse):
    described = {each["name"] for each in PATHS[path]["parameters"]}
    with pytest.raises(ParameterError) as refusal:
        parse([("nosuch", "")])
    named = re.match("there are ([^;]*);", refusal.value.hint)[1].split(", ")
    assert described == set(named)


@pytest.mark.parametrize(
    ("name", "schema"),
    [(name, schema) for name, schema in PARAMETERS.items() if "maximum" in schema],
)
def test_the_least_and_the_greatest_are_taken_and_nothing_beyond(name, schema):
    least, greatest = schema["minimum"], schema["maximum"]
    for value in (least, greatest):
        read(name, str(value))
    for value in (least - 1, greatest + 1):
        with pytest.raises(ParameterError):
            read(name, str(value))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name, schema in PARAMETERS.items()
        for value in (*schema.get("enum", ()), *schema.get("examples", ()))
    ],
)
def test_values_that_it_names_are_taken(name, value):
    read(name, value)


def test_the_longest_filter_and_most_interfaces_are_taken():
    read("filter", "x" * PARAMETERS["filter"]["maxLength"])
    with pytest.raises(ParameterError):
        read("filter", "x" * (PARAMETERS["filter"]["maxLength"] + 1))
    most = PARAMETERS["interface"]["maxItems"]
    CaptureQuery.parse([("interface", "x" * 15)] * most)
    with pytest.raises(ParameterError):
        CaptureQuery.parse([("interface", "x")] * (most + 1))


def test_what_it_refers_to_is_there():
    text = document().decode()
    for kind, name in re.findall(r'"#/components/(\w+)/([^"]+)"', text):
        assert name in COMPONENTS[kind]


def test_only_health_and_itself_are_open():
    is_open = {path for path, item in PATHS.items() if {} in item["get"]["security"]}
    assert is_open == {"/api/v1/health", "/api/v1/openapi.json"}


def test_a_wrong_token_is_refused_everywhere_and_some_may_come_again():
    for item in PATHS.values():
        assert {"401", "403"} <= item["get"]["responses"].keys()
    for status in ("403", "503"):
        assert "Retry-After" in COMPONENTS["responses"][status]["headers"]
