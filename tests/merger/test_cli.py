from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

import ddump_merger
from ddump_common.api import Link
from ddump_common.errors import ExitCode, OutputError, UnreachableError, UsageError
from ddump_common.pcap import Precision
from ddump_common.units import SECONDS
from ddump_merger.cli import main, run
from ddump_merger.config import ClockMode, TlsFiles
from support.captures import Record, pcap

START = 1_700_000_000_000_000_000
PRESENT = object()


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """No credentials from outside, and the logging of pytest as it was."""
    for name in ("DDUMP_USER", "DDUMP_PASSWORD", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/nonexistent")
    root, ours = logging.getLogger(), logging.getLogger("ddump_merger")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    root.handlers.clear()  # what is configured is not to close those of pytest
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


@pytest.fixture
def config(monkeypatch):
    """Return the ``Config`` that words come to; nothing is run."""

    def parse(*words):
        seen = []

        def remember(config):
            seen.append(config)
            return ExitCode.OK

        monkeypatch.setattr("ddump_merger.job.run_job", remember)
        assert main(words) == 0
        (config,) = seen
        return config

    return parse


def test_defaults(config):
    parsed = config("http://web1")
    assert [t.url for t in parsed.targets] == ["http://web1:8475/capture"]
    assert (parsed.output, parsed.pcapng, parsed.link, parsed.precision) == (
        None, False, None, None,
    )  # fmt: skip
    assert (parsed.count, parsed.duration_ns, parsed.quiet) == (0, None, False)
    assert (parsed.hold_ns, parsed.disorder_ns) == (SECONDS, SECONDS // 20)
    assert (parsed.timeout_ns, parsed.connect_timeout_ns) == (
        30 * SECONDS,
        10 * SECONDS,
    )
    assert parsed.buffer_bytes == 64 << 20
    assert parsed.tls == TlsFiles()
    assert (parsed.clock, parsed.reconnect, parsed.fail_fast, parsed.report) == (
        ClockMode.REPORT, True, False, None,
    )  # fmt: skip


def test_everything(config):
    parsed = config(
        "-f", "udp", "-i", "eth0", "--interface", "eth1", "-s", "96", "-c", "7",
        "--duration", "1m", "-w", "out.pcap", "--format", "pcapng", "--link", "sll2",
        "--precision", "nano", "--hold", "2s", "--disorder", "5ms", "--buffer", "1MiB",
        "--timeout", "3s", "--connect-timeout", "4s", "--ca", "a", "--cert", "b",
        "--key", "c", "--crl", "d", "-q", "http://web1", "http://web2?filter=tcp",
        "--clock", "correct", "--no-reconnect", "--fail-fast", "--report", "r.json",
    )  # fmt: skip
    assert [t.query.filter for t in parsed.targets] == ["udp", "(tcp) and (udp)"]
    query = parsed.targets[0].query
    assert query.interfaces == ("eth0", "eth1")
    assert (query.snaplen, query.duration_ns) == (96, 60 * SECONDS)
    assert (query.link, query.precision) == (Link.SLL2, Precision.NANO)
    assert (parsed.link, parsed.precision) == (Link.SLL2, Precision.NANO)
    assert (parsed.count, parsed.duration_ns) == (7, 60 * SECONDS)
    assert (parsed.output, parsed.pcapng, parsed.quiet) == (
        Path("out.pcap"),
        True,
        True,
    )
    assert (parsed.hold_ns, parsed.disorder_ns) == (2 * SECONDS, 5_000_000)
    assert (parsed.timeout_ns, parsed.connect_timeout_ns) == (3 * SECONDS, 4 * SECONDS)
    assert parsed.buffer_bytes == 1 << 20
    assert parsed.tls == TlsFiles(
        ca=Path("a"), cert=Path("b"), key=Path("c"), crl=Path("d")
    )
    assert (parsed.clock, parsed.reconnect, parsed.fail_fast, parsed.report) == (
        ClockMode.CORRECT, False, True, Path("r.json"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "count", "tls"),
    [
        (["-ca", "x"], 0, TlsFiles(ca=Path("x"))),
        (["-cert", "x", "-key", "y"], 0, TlsFiles(cert=Path("x"), key=Path("y"))),
        (["-ca=x"], 0, TlsFiles(ca=Path("x"))),
        (["-c", "5", "-ca", "x"], 5, TlsFiles(ca=Path("x"))),
        (["-c5"], 5, TlsFiles()),
        (["-qc5"], 5, TlsFiles()),
        (["--count=5", "--ca=x"], 5, TlsFiles(ca=Path("x"))),
    ],
)
def test_long_options_with_one_dash(config, words, count, tls):
    parsed = config(*words, "http://web1")
    assert (parsed.count, parsed.tls) == (count, tls)


@pytest.mark.parametrize("words", [[], ["-q"], ["-v"]])
def test_insecure_is_loud(config, capsys, words):
    assert config("http://web1").tls.insecure is False
    assert capsys.readouterr().err == ""
    assert config("--insecure", *words, "http://web1").tls.insecure
    assert capsys.readouterr().err.startswith("ddump: WARNING: --insecure: no worker's")


@pytest.mark.parametrize("output", [[], ["-w", "-"]])
def test_standard_output(config, output):
    assert config("a.pcap", *output).output is None


def test_only_the_first_word_can_be_a_subcommand(config):
    assert [t.name for t in config("a.pcap", "status").targets] == ["a.pcap", "status"]
    assert [t.name for t in config("-q", "status").targets] == ["status"]
    assert [t.name for t in config("./status").targets] == ["./status"]
    assert [t.name for t in config("./segments").targets] == ["./segments"]


def test_windows_have_one_now_for_all_targets(config, tmp_path):
    path = tmp_path / "targets"
    path.write_text("http://h1\nhttp://h2?filter=icmp\n")
    parsed = config("--last", "5m", "-T", path, "http://h0")
    queries = [target.query for target in parsed.targets]
    assert len({(query.since_ns, query.until_ns) for query in queries}) == 1
    assert queries[0].until_ns - queries[0].since_ns == 300 * SECONDS
    assert [target.path for target in parsed.targets] == ["/ring"] * 3


@pytest.mark.parametrize(
    ("words", "since_ns", "until_ns", "follow"),
    [
        (["--since", "2023-11-22T14:03:00Z"], 1_700_661_780 * SECONDS, PRESENT, False),
        (
            ["--since", "100000005", "--until", "100000006.5"],
            100_000_005 * SECONDS,
            100_000_006_500_000_000,
            False,
        ),
        (["--since=100000005", "--follow"], 100_000_005 * SECONDS, None, True),
        (["--until", "100000006"], None, 100_000_006 * SECONDS, False),
        (["--since", "0"], 0, PRESENT, False),
    ],
)
def test_windows(config, words, since_ns, until_ns, follow):
    began_ns = time.time_ns()
    (target,) = config(*words, "http://h").targets
    query = target.query
    assert query.since_ns == since_ns
    if until_ns is PRESENT:
        assert began_ns <= query.until_ns <= time.time_ns()
    else:
        assert query.until_ns == until_ns
    assert query.follow is follow


@pytest.mark.parametrize(
    ("words", "seconds"),
    [(["--since", "-5m", "--until", "-1m"], 240), (["--last", "-5m"], 300)],
)
def test_a_relative_time_may_begin_with_a_dash(config, words, seconds):
    (target,) = config(*words, "http://h").targets
    assert target.query.until_ns - target.query.since_ns == seconds * SECONDS


def test_files_of_targets(config, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("a=http://h1  # comment\n\n-\n")
    two.write_text("# nothing\nhttp://h2\nb.pcap\na=http://h3\n")
    parsed = config("-T", one, "http://h0", "--targets", two)
    assert [t.name for t in parsed.targets] == [
        "http://h0"[7:],
        "a",
        "-",
        "h2",
        "b.pcap",
        "a#2",
    ]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "no target (ddump --help shows what a target is)"),
        (["--nonsense", "a"], "No such option"),
        (["-s", "0", "a"], "0 is not in the range 1<=x<=262144"),
        (["-c", "0", "a"], "0 is not in the range"),
        (["-c", "x", "a"], "'x' is not a valid integer"),
        (["--hold", "5 years", "a"], "'5 years' is not a duration"),
        (["--buffer", "lots", "a"], "'lots' is not a size"),
        (["--format", "csv", "a"], "'csv' is not one of"),
        (["--link", "ethernet", "a"], "'ethernet' is not one of"),
        (
            ["-f", "tcp", "a.pcap"],
            "a.pcap: --filter, --interface and --snaplen are for",
        ),
        (["-i", "eth0", "http://h", "a.pcap"], "a.pcap: --filter"),
        (["--duration", "5", "a.pcap"], "--duration is for workers"),
        (
            ["-s", "5", "http://h?snaplen=6"],
            "--snaplen is given, and snaplen= in the URL",
        ),
        (["-T", "/nonexistent/x"], "cannot read /nonexistent/x: No such file"),
        (["--token-file", "/nonexistent/x", "a"], "cannot read /nonexistent/x"),
        (["--user", "me", "http://h"], "no password for the user 'me'"),
        (["--last", "5m", "a.pcap"], "--follow are for workers, not for files"),
        (["--last", "5 years", "http://h"], "--last: '5 years' is not a duration (for"),
        (
            ["--since", "5", "http://h"],
            "--since: '5' is a moment of the seventies (meant 5m",
        ),
        (["--since", "soon", "http://h"], "--since: 'soon' is not a time (for example"),
        (["--last", "5m", "--since", "-5m"], "--last: since is given as well"),
        (
            ["--last", "5m", "--until", "-1m"],
            "--last: ends now (give since with until)",
        ),
        (["--since", "-1m", "--until", "-2m"], "--until: is not after since"),
        (["--follow", "--until", "-2m"], "--until: is past"),
        (["--last", "5m", "http://h/capture"], "/capture has no past"),
        (["--last", "5m", "http://h?last=5m"], "--last is given, and last= in the URL"),
        (["segments"], "segments is for workers"),
        (["segments", "a.pcap"], "segments is for workers"),
        (["segments", "--last", "5m", "http://h"], "No such option"),
        (["status"], "status is for workers"),
        (["status", "--hold", "5", "http://h"], "No such option"),
        (["status", "a.pcap"], "status is for workers"),
    ],
)
def test_wrong_usage(capsys, words, complaint):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert complaint in err
    assert err.startswith("ddump: ")
    assert err.count("\n") == 1
    assert out == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--buffer", "5xb", "a"],
         "--buffer: '5xb' is not a size (for example 2GB or 512MiB)"),
        (["-c", "x", "a"], "--count: 'x' is not a valid integer range"),
        (["-ca"], "Option '-ca' requires an argument (see ddump --help)"),
        (["status", "--0000000000"], "No such option '--0000000000' (see ddump status --help)"),
    ],
)  # fmt: skip
def test_usage_errors_are_one_line(capsys, words, said):
    assert main(words) == 2
    assert capsys.readouterr().err == f"ddump: {said}\n"


def test_a_line_of_a_file_is_named(capsys, tmp_path):
    path = tmp_path / "t"
    path.write_text("http://ok\nhttp://h:x\n")
    assert main(["-T", str(path)]) == 2
    assert (
        f"ddump: {path}:2: http://h:x: the part before the path"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("user", "words", "code"),
    [
        (None, ["http://h"], 2),
        (None, ["a.pcap"], 2),
        (None, ["http://h", "http://alice@h"], 0),
        ("alice", ["http://h"], 0),
    ],
)
def test_a_password_is_somebody_s(monkeypatch, capsys, tmp_path, user, words, code):
    monkeypatch.setattr("ddump_merger.job.run_job", lambda _: ExitCode.OK)
    if user:
        monkeypatch.setenv("DDUMP_USER", user)
    path = tmp_path / "password"
    path.touch(0o600)
    path.write_text("pw")
    assert main(["--password-file", str(path), *words]) == code
    said = (
        "--password-file is given, and no user (--user NAME, or NAME@ before the host)"
    )
    assert (f"ddump: {said}\n" in capsys.readouterr().err) == (code == 2)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ddump, version {ddump_merger.__version__}\n"


@pytest.mark.parametrize("command", ["status", "segments"])
def test_help_of_a_survey_has_its_own_exit_codes(capsys, command):
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    for line in (
        "0  all answered, also",
        "3  no target answered",
        "4  a target did not",
        "130  interrupted",
    ):
        assert line in out


@pytest.mark.parametrize("words", [["--help"], ["-h"]])
def test_help_has_the_exit_codes(capsys, words):
    assert main(words) == 0
    out = capsys.readouterr().out
    for line in (
        "0  all as asked",
        "1  failure",
        "2  wrong usage",
        "3  no target could be opened",
        "4  the output is good, but a target is missing or was cut short",
        "5  the output cannot be written",
        "130  interrupted before there was a run",
    ):
        assert line in out


def test_help_has_every_option(capsys):
    main(["--help"])
    out = capsys.readouterr().out
    for option in (
        "-f, --filter", "-i, --interface", "-s, --snaplen", "-c, --count", "--duration",
        "--last", "--since", "--until", "--follow",
        "-T, --targets", "-w, --write", "--format", "--link", "--precision", "-ca, --ca",
        "-cert, --cert", "-key, --key", "--crl", "--insecure", "--user", "--password-file", "--token-file",
        "--hold", "--disorder", "--buffer", "--timeout", "--connect-timeout",
        "-q, --quiet", "-v, --verbose", "--version", "--help",
    ):  # fmt: skip
        assert (
            f"  {option} " in out or f"  {option}\n" in out or f", {option} " in out
        ), option


def test_a_run_in_this_process(capfdbinary, tmp_path):
    """What ``python -m ddump_merger`` does, seen by the measure of coverage."""
    path = tmp_path / "a.pcap"
    path.write_bytes(pcap([Record(START, b"x")]))
    assert main([str(path), str(tmp_path / "none")]) == 4
    out, err = capfdbinary.readouterr()
    assert out == path.read_bytes()
    assert b"none: no such file or directory" in err


def test_the_line_beats_the_environment(config, monkeypatch, tmp_path):
    token = tmp_path / "token"
    token.write_text("abc")
    token.chmod(0o600)
    monkeypatch.setenv("DDUMP_USER", "alice")
    monkeypatch.setenv("DDUMP_PASSWORD", "pw")

    def header(*words):
        return config(*words, "http://h").targets[0].authorization.header

    assert header() == "Basic YWxpY2U6cHc="
    assert header("--token-file", str(token)) == "Bearer abc"
    assert header("--user", "bob") == "Basic Ym9iOnB3"
    assert main(["--user", "bob", "--token-file", str(token), "http://h"]) == 2


# --- Errors ---


def raising(exc):
    def command():
        raise exc

    return command


@pytest.mark.parametrize(
    ("exc", "code", "said"),
    [
        (UsageError("bad", hint="do"), 2, "ddump: bad (do)\n"),
        (OutputError("no\x1b[2J"), 5, "ddump: no\\x1b[2J\n"),
        (BrokenPipeError(errno.EPIPE, "gone"), 0, ""),
        (KeyboardInterrupt(), 130, ""),
        (click.Abort(), 130, ""),
        (click.UsageError("bad"), 2, "ddump: bad (see ddump --help)\n"),
        (
            BaseExceptionGroup(
                "",
                [
                    UnreachableError("one"),
                    ExceptionGroup("", [OutputError("two"), BrokenPipeError()]),
                ],
            ),
            5,
            "ddump: one\nddump: two\n",
        ),
        (ExceptionGroup("", [BrokenPipeError()]), 0, ""),
    ],
)
def test_errors_are_lines_and_a_code(capsys, exc, code, said):
    assert run(raising(exc)) == code
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    "exc",
    [
        RuntimeError("bug"),
        OSError(errno.ENOSPC, "not from printing"),
        ExceptionGroup("", [BrokenPipeError(), RuntimeError()]),
        SystemExit(3),
    ],
)
def test_what_nobody_foresaw_is_not_hidden(exc):
    with pytest.raises(type(exc)):
        run(raising(exc))


# --- What is printed ---


@pytest.fixture(params=[-1, 0], ids=["buffered", "unbuffered"])
def printing(request, monkeypatch):
    """Have standard output be what a test says, for its body."""

    @contextlib.contextmanager
    def to(descriptor):
        whole = os.fdopen(descriptor, "wb", request.param)
        output = io.TextIOWrapper(whole, write_through=request.param == 0)
        monkeypatch.setattr(sys, "stderr", sys.stderr)  # click changes it as well
        monkeypatch.setattr(sys, "stdout", output)
        yield
        for each in (sys.stdout, output):
            with contextlib.suppress(OSError):
                each.close()

    return to


PRINTING = pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["pki", "init"], ["status", "--help"]]
)


@PRINTING
def test_what_is_printed_to_a_full_disk(printing, capsys, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    with printing(os.open("/dev/full", os.O_WRONLY)):
        assert main(words) == 5
    assert capsys.readouterr().err == (
        "ddump: cannot write standard output: No space left on device\n"
    )


@PRINTING
def test_what_is_printed_to_who_has_gone(
    printing, capsys, tmp_path, monkeypatch, words
):
    monkeypatch.chdir(tmp_path)
    reader, writer = os.pipe()
    os.close(reader)
    with printing(writer):
        assert main(words) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("pipe", "code", "said"),
    [
        ("> /dev/full", 5, "cannot write standard output: No space left on device\n"),
        ("| true; exit ${PIPESTATUS[0]}", 0, ""),
    ],
)
def test_a_process_that_cannot_print_says_no_more_at_its_end(pipe, code, said):
    command = f"{shlex.quote(sys.executable)} -m ddump_merger --help"
    done = subprocess.run(
        ["bash", "-c", f"{command} {pipe}"],
        capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    assert (done.returncode, done.stderr.removeprefix("ddump: ")) == (code, said)


def test_messages_are_made_safe(capsys, config):
    config("-v", "http://h")
    logging.getLogger("ddump_merger.x").info("%s: %s", "a\x1b[2Jb", "c\nd")
    logging.getLogger("ddump_merger.x").debug("not so much")
    logging.getLogger("other").info("nor this")
    assert capsys.readouterr().err == "ddump: a\\x1b[2Jb: c\\x0ad\n"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["-q"], ["error"]),
        ([], ["error", "warning"]),
        (["-v"], ["error", "warning", "info"]),
        (["-vv"], ["error", "warning", "info", "debug"]),
    ],
)
def test_how_much_is_said(capsys, config, options, expected):
    config(*options, "http://h")
    for level in ("error", "warning", "info", "debug"):
        getattr(logging.getLogger("ddump_merger.x"), level)(level)
    assert capsys.readouterr().err.splitlines() == [
        f"ddump: {each}" for each in expected
    ]
