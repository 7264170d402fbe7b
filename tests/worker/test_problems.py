"""What clients are told, error by error."""

from __future__ import annotations

import json
import platform
import time

import pytest
from aiohttp import web

from ddump_common.answers import Problem
from ddump_common.errors import (
    CaptureError,
    FilterError,
    ParameterError,
    PrivilegeError,
    UsageError,
)
from ddump_common.window import Interval, WindowReport
from ddump_worker.capacity import ExhaustedError
from ddump_worker.denial import ForbiddenError, MisdirectedError, UnauthorizedError
from ddump_worker.filters import BusyError
from ddump_worker.problems import (
    common_headers,
    problem_of,
    problem_response,
    raw_problem,
    reason_of,
)
from ddump_worker.window import NoRingError, UncoveredError

ERRORS = [
    (ParameterError("snaplen", "too much", hint="less"), 400, "parameter"),
    (ParameterError("interface", "unknown"), 400, "interface"),
    (FilterError("syntax error"), 400, "filter"),
    (ExhaustedError("streams", "all in use"), 503, "streams"),
    (ExhaustedError("memory", "no more"), 503, "memory"),
    (BusyError("busy"), 503, "busy"),
    (PrivilegeError("no"), 500, "privilege"),
    (CaptureError("no"), 500, "error"),
    (UsageError("nonsense"), 400, "error"),
    (web.HTTPNotFound(), 404, "error"),
    (web.HTTPMethodNotAllowed("POST", ["HEAD", "GET"]), 405, "error"),
    (ZeroDivisionError("secret"), 500, "error"),
    (ExhaustedError("windows", "all in use"), 503, "windows"),
    (UnauthorizedError("who?", hint="show it"), 401, "unauthorized"),
    (ForbiddenError("no"), 403, "forbidden"),
    (MisdirectedError("not me"), 421, "misdirected"),
    (NoRingError(), 404, "ring"),
    (UncoveredError("nothing", report=WindowReport(covered=None)), 416, "window"),
]


@pytest.mark.parametrize(("error", "status", "reason"), ERRORS)
def test_each_error_has_a_status_and_a_reason(error, status, reason):
    problem, headers = problem_of(error)
    assert problem.status == status
    assert problem.title
    assert reason_of(error) == reason
    assert ("Retry-After" in headers) == (status == 503)


def test_the_parameter_is_named_and_the_hint_is_told():
    problem, _ = problem_of(ERRORS[0][0])
    assert (problem.parameter, problem.detail, problem.hint) == (
        "snaplen",
        "too much",
        "less",
    )


def test_a_window_outside_the_ring_has_the_header_that_says_so():
    gap = Interval(begin_ns=0, end_ns=10**9)
    report = WindowReport(covered=None, gaps=(gap,))
    problem, headers = problem_of(UncoveredError("it has nothing", report=report))
    assert headers == {"Ddump-Window": report.serialize()}
    assert problem.detail == "it has nothing"
    assert "/api/v1/segments" in problem.hint


def test_a_path_that_does_not_exist_is_told_which_do():
    problem, _ = problem_of(web.HTTPNotFound())
    assert "/capture" in problem.hint


def test_a_method_that_is_not_allowed_is_told_which_are():
    problem, headers = problem_of(web.HTTPMethodNotAllowed("POST", ["HEAD", "GET"]))
    assert headers == {"Allow": "GET, HEAD"}
    assert "GET, HEAD" in problem.hint


def test_another_http_error_is_told_by_its_name():
    problem, headers = problem_of(web.HTTPExpectationFailed())
    assert (problem.title, problem.hint, headers) == ("Expectation Failed", "", {})


def test_what_is_unforeseen_is_not_told():
    problem, _ = problem_of(ZeroDivisionError("secret"))
    assert problem == Problem(title="Internal error", status=500)


def test_control_characters_are_made_harmless():
    problem, _ = problem_of(ParameterError("a\x1b", "b\x07"))
    assert (problem.parameter, problem.detail) == ("a\\x1b", "b\\x07")


def test_the_response_is_rfc_9457():
    response = problem_response(Problem(title="T", status=418), {"Allow": "GET"})
    assert response.status == 418
    assert response.content_type == "application/problem+json"
    assert json.loads(response.body) == {"title": "T", "status": 418}
    assert response.headers["Allow"] == "GET"
    assert response.headers["Ddump-Host"] == platform.node()


def test_a_raw_answer_is_whole():
    head, _, body = raw_problem(Problem(title="T", status=503)).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 503 Service Unavailable"
    assert f"Content-Length: {len(body)}" in lines
    assert "Connection: close" in lines
    assert json.loads(body) == {"title": "T", "status": 503}


def test_the_common_headers_say_who_and_when():
    before = time.time_ns()
    headers = common_headers()
    assert before <= int(headers["Ddump-Time"]) <= time.time_ns()
    assert headers["Server"].startswith("ddump-worker/")
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_who_is_not_known_is_told_what_may_be_shown():
    problem, headers = problem_of(UnauthorizedError("who?", hint="show a token"))
    assert headers == {"WWW-Authenticate": "Bearer"}
    assert (problem.detail, problem.hint) == ("who?", "show a token")


def test_what_is_allowed_later_says_when():
    _, headers = problem_of(ForbiddenError("not now", retry_after_seconds=7))
    assert headers == {"Retry-After": "7"}
