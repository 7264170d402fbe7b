"""The command line: options to a ``Config``, errors to one line and an exit code."""

from __future__ import annotations

import logging
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ddump_common.api import Link
from ddump_common.errors import DdumpError, ExitCode, ParameterError, UsageError
from ddump_common.pcap import MAX_SNAPLEN, Precision
from ddump_common.units import format_duration, format_size, parse_duration, parse_size

from . import __version__
from . import config as defaults
from .config import ClockMode, Config, TlsFiles
from .console import ensure_standard_error, say
from .credentials import Keyring
from .printing import printing
from .summary import failure_code, failures
from .target import (
    HttpTarget,
    QueryOptions,
    Target,
    parse_target,
    read_targets_file,
    unique_names,
)
from .window import parse_window

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["main", "merge_command", "segments_command", "status_command"]

_EPILOG = """\b
Exit status:
  0  all as asked; also when interrupted, when the output's reader has gone, and when
     what a broken network took was filled from the rings
  1  failure
  2  wrong usage
  3  no target could be opened, and nothing was written; also when interrupted before
  4  the output is good, but a target is missing or was cut short, packets were lost on
     the way or in an outage, or a ring may lack a part of its window
  5  the output cannot be written, or the report
  130  interrupted before there was a run to end in order, or once more as it ended

"ddump status TARGET..." asks workers for their state, "ddump segments TARGET..." for
what their rings hold; "ddump pki" makes certificates. Each has its own --help.
"""
_INSECURE = (
    "WARNING: --insecure: no worker's certificate is verified: whoever is on the way can "
    "read and alter all, and take your credentials"
)
_EXPOSED = (
    "WARNING: {0.name}: http sends the {0.authorization.secret} in plain: whoever is on "
    "the way can take it, and read and alter all; use https"
)
_STATUS_EPILOG = """\b
Exit status:
  0  all answered, also those that keep no ring
  1  failure
  2  wrong usage
  3  no target answered
  4  a target did not answer
  5  the answers cannot be written
  130  interrupted
"""
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

_Command = TypeVar("_Command", bound="Callable[..., Any]")


class _Parsed(click.ParamType[int]):
    """An option's value that the common grammar reads."""

    def __init__(self, name: str, parse: Callable[[str], int]) -> None:
        self.name = name
        self._parse = parse

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        try:
            return self._parse(str(value))
        except UsageError as exc:
            self.fail(str(exc), param, ctx)


_DURATION = _Parsed("duration", parse_duration)
_SIZE = _Parsed("size", parse_size)
_FILE = click.Path(path_type=Path)


def _options(
    *options: Callable[[_Command], _Command],
) -> Callable[[_Command], _Command]:
    """Return one decorator for several, in the order of ``--help``."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_TARGET_OPTIONS = _options(
    click.argument("words", metavar="TARGET...", nargs=-1),
    click.option(
        "-T", "--targets", "files", metavar="FILE", type=_FILE, multiple=True,
        help="Read targets from FILE, one a line; # begins a comment. Repeatable.",
    ),
)  # fmt: skip

_CONNECTION_OPTIONS = _options(
    click.option(
        "--ca", "-ca", metavar="FILE", type=_FILE,
        help="Trust the authorities in FILE instead of the system's.",
    ),
    click.option(
        "--cert", "-cert", metavar="FILE", type=_FILE,
        help="The certificate to show to workers that ask for one.",
    ),
    click.option(
        "--key", "-key", metavar="FILE", type=_FILE,
        help="Its private key, when it is not in the same file.",
    ),
    click.option(
        "--crl", metavar="FILE", type=_FILE,
        help="Refuse workers whose certificates FILE says are revoked.",
    ),
    click.option(
        "--insecure", is_flag=True,
        help="Do not verify who the workers are: whoever is on the way can read and alter "
        "all, and take your credentials.",
    ),
    click.option(
        "--user", metavar="NAME", envvar="DDUMP_USER",
        help="Log in as NAME [env DDUMP_USER]; the password comes from DDUMP_PASSWORD, "
        "--password-file or netrc.",
    ),
    click.option(
        "--password-file", metavar="FILE", type=_FILE,
        help="The first line of FILE is the password.",
    ),
    click.option(
        "--token-file", metavar="FILE", type=_FILE,
        help="The first line of FILE is a bearer token, for targets without a user.",
    ),
    click.option(
        "--connect-timeout", metavar="TIME", type=_DURATION,
        default=format_duration(defaults.CONNECT_TIMEOUT_NS), show_default=True,
        help="How long a target may take to answer.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors."),
    click.option("-v", "--verbose", count=True, help="Say more: also which targets were opened."),
)  # fmt: skip


@click.command("ddump", epilog=_EPILOG, context_settings=_CONTEXT)
@_TARGET_OPTIONS
@click.option(
    "-f",
    "--filter",
    "expression",
    metavar="EXPRESSION",
    default="",
    help="What to capture, as tcpdump has it; joined with a filter in a URL by 'and'.",
)
@click.option(
    "-i",
    "--interface",
    "interfaces",
    metavar="NAME",
    multiple=True,
    help="Only what crosses this interface. Repeatable.",
)
@click.option(
    "-s",
    "--snaplen",
    metavar="BYTES",
    type=click.IntRange(1, MAX_SNAPLEN),
    help="Bytes to keep of each packet.",
)
@click.option(
    "-c",
    "--count",
    metavar="N",
    type=click.IntRange(1, (1 << 63) - 1),
    default=None,
    help="Stop all after N packets came out.",
)
@click.option("--duration", metavar="TIME", type=_DURATION, help="How long to capture.")
@click.option(
    "--last",
    metavar="TIME",
    help="What the rings have of the last 5m, for example, instead of a live capture.",
)
@click.option(
    "--since",
    metavar="WHEN",
    help="What the rings have from WHEN on: -5m, 14:03:00, 2026-11-22, "
    "'2026-11-22 14:03', with an offset or Z, or seconds since the epoch.",
)
@click.option(
    "--until",
    metavar="WHEN",
    help="What the rings have before WHEN. [default: now]",
)
@click.option(
    "--follow",
    is_flag=True,
    help="Go on live after the window, with no gap; without one, begin now.",
)
@click.option(
    "-w",
    "--write",
    metavar="FILE",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Write to FILE instead of standard output.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["pcap", "pcapng"]),
    default="pcap",
    show_default=True,
    help="Of the output; pcapng names the target of each packet.",
)
@click.option(
    "--link",
    type=click.Choice([link.value for link in Link]),
    help="Link type of cooked captures; sll2 has the interface of each packet. "
    "[default: sll]",
)
@click.option(
    "--precision",
    type=click.Choice([precision.value for precision in Precision]),
    help="Of timestamps. [default: micro, or nano when a file may be finer]",
)
@click.option(
    "--hold",
    metavar="TIME",
    type=_DURATION,
    default=format_duration(defaults.HOLD_NS),
    show_default=True,
    help="How long a silent server that sends no heartbeats may hold the others back.",
)
@click.option(
    "--disorder",
    metavar="TIME",
    type=_DURATION,
    default=format_duration(defaults.DISORDER_NS),
    show_default=True,
    help="How far out of order the packets of one target may be.",
)
@click.option(
    "--buffer",
    metavar="SIZE",
    type=_SIZE,
    default=format_size(defaults.BUFFER_BYTES),
    show_default=True,
    help="Memory for the packets that one target may hold.",
)
@click.option(
    "--timeout",
    metavar="TIME",
    type=_DURATION,
    default=format_duration(defaults.TIMEOUT_NS),
    show_default=True,
    help="How long a window, standard input or a pipe may bring nothing.",
)
@click.option(
    "--clock",
    type=click.Choice([mode.value for mode in ClockMode]),
    default=ClockMode.REPORT.value,
    show_default=True,
    help="What to do about clocks that are not ours: only say so, or also correct the "
    "timestamps of packets, and a window that is asked for, by what they are off.",
)
@click.option(
    "--reconnect/--no-reconnect",
    default=True,
    show_default=True,
    help="Go on with a target that broke, and have its ring bring what is missing if "
    "that still has it.",
)
@click.option(
    "--fail-fast",
    is_flag=True,
    help="End at the first loss: a break, gap, drop, or packet that is missing or late.",
)
@click.option(
    "--report",
    metavar="FILE",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Write to FILE how it went, in JSON.",
)
@_CONNECTION_OPTIONS
@click.version_option(__version__, prog_name="ddump")
@click.pass_context
def merge_command(context: click.Context, /, **_: object) -> ExitCode:
    """Merge the captures of all targets by time into one.

    A TARGET is [LABEL=]http(s)://[USER[:PASSWORD]@]HOST[:8475][/PATH][?filter=...],
    a capture file, or - for standard input. The capture goes to standard output:

    \b
        ddump 'http://web1?filter=icmp' 'http://web2' | tcpdump -nr-
        ddump -f 'port 53' -T prod.targets -w dns.pcap
        ddump --last 5m -f 'host 10.0.0.5' http://web1 http://db1 | tcpdump -nr-
        ddump old.pcap new.pcapng | tcpdump -nr-
    """  # noqa: D301 - click takes a real backspace for "do not wrap this"
    options = context.params
    _configure_logging(quiet=options["quiet"], verbose=options["verbose"])
    link = Link(options["link"]) if options["link"] else None
    precision = Precision(options["precision"]) if options["precision"] else None
    now_ns = time.time_ns()
    query = QueryOptions(
        window=_window(options, now_ns),
        now_ns=now_ns,
        filter=options["expression"],
        interfaces=options["interfaces"],
        snaplen=options["snaplen"],
        duration_ns=options["duration"],
        link=link,
        precision=precision,
    )
    output = options["write"]
    config = Config(
        targets=_targets(options, query),
        output=None if output is None or str(output) == "-" else output,
        pcapng=options["format_"] == "pcapng",
        link=link,
        precision=precision,
        count=options["count"] or 0,
        duration_ns=options["duration"],
        hold_ns=options["hold"],
        disorder_ns=options["disorder"],
        buffer_bytes=options["buffer"],
        timeout_ns=options["timeout"],
        connect_timeout_ns=options["connect_timeout"],
        tls=_tls_files(options),
        clock=ClockMode(options["clock"]),
        reconnect=options["reconnect"],
        fail_fast=options["fail_fast"],
        report=options["report"],
        quiet=options["quiet"],
    )
    from .job import run_job

    return run_job(config)


def _window(options: dict[str, Any], now_ns: int) -> tuple[tuple[str, str], ...]:
    """Return what the options say of a window, as a query has it.

    Raises:
        UsageError: it is none.

    """
    names = ("last", "since", "until")
    pairs = [(name, options[name]) for name in names if options[name] is not None]
    if options["follow"]:
        pairs.append(("follow", "1"))
    try:
        parse_window(pairs, now_ns=now_ns)
    except ParameterError as exc:
        raise UsageError(f"--{exc.parameter}: {exc.message}", hint=exc.hint) from None
    return tuple(pairs)


_JSON_OPTION = click.option(
    "--json", "as_json", is_flag=True, help="JSON objects, one a line."
)


@click.command("ddump status", epilog=_STATUS_EPILOG, context_settings=_CONTEXT)
@_TARGET_OPTIONS
@_JSON_OPTION
@_CONNECTION_OPTIONS
@click.pass_context
def status_command(context: click.Context, /, **_: object) -> ExitCode:
    """Ask every worker for its state: streams, packets, drops, memory, the ring."""
    from .status import show_status

    return _show(context, show_status)


@click.command("ddump segments", epilog=_STATUS_EPILOG, context_settings=_CONTEXT)
@_TARGET_OPTIONS
@_JSON_OPTION
@_CONNECTION_OPTIONS
@click.pass_context
def segments_command(context: click.Context, /, **_: object) -> ExitCode:
    """Ask every worker what its ring holds: segments, packets, drops, gaps.

    With --json there is an object for each segment, and one for each ring.
    """
    from .segments import show_segments

    return _show(context, show_segments)


def _show(context: click.Context, show: Callable[..., ExitCode]) -> ExitCode:
    """Run a command that asks workers."""
    options = context.params
    _configure_logging(quiet=options["quiet"], verbose=options["verbose"])
    return show(
        _targets(options, QueryOptions()),
        tls=_tls_files(options),
        connect_timeout_ns=options["connect_timeout"],
        as_json=options["as_json"],
    )


def _targets(options: dict[str, Any], query: QueryOptions) -> tuple[Target, ...]:
    """Return what the command line and the files of targets name."""
    keyring = _keyring(options)
    targets = [parse_target(word, query, keyring) for word in options["words"]]
    for path in options["files"]:
        for where, text in read_targets_file(path):
            try:
                targets.append(parse_target(text, query, keyring))
            except UsageError as exc:
                raise UsageError(f"{where}: {exc.message}", hint=exc.hint) from None
    workers = [each for each in targets if isinstance(each, HttpTarget)]
    secrets = {each.authorization.secret for each in workers if each.authorization}
    if options["password_file"] is not None and "password" not in secrets:
        raise UsageError(
            "--password-file is given, and no user",
            hint="--user NAME, or NAME@ before the host",
        )
    named = unique_names(targets)
    for target in named:
        if isinstance(target, HttpTarget) and target.exposed:
            # Said to everybody, as it is for _INSECURE.
            say(f"ddump: {_EXPOSED.format(target)}")
    return tuple(named)


def _keyring(options: dict[str, Any]) -> Keyring:
    """Return the credentials for all targets; a word on the line beats the environment.

    Raises:
        UsageError: both a user and a token are given on the line.

    """
    user, token_file = options["user"], options["token_file"]
    if user is not None and token_file is not None:
        source = click.get_current_context().get_parameter_source("user")
        if source is not click.core.ParameterSource.ENVIRONMENT:
            raise UsageError("--user and --token-file are both given", hint="give one")
        user = None
    return Keyring.open(
        user=user, password_file=options["password_file"], token_file=token_file
    )


def _tls_files(options: dict[str, Any]) -> TlsFiles:
    if options["insecure"]:
        # Also for who wants to hear nothing but errors: it is one, unless it is meant.
        say(f"ddump: {_INSECURE}")
    return TlsFiles(
        ca=options["ca"],
        cert=options["cert"],
        key=options["key"],
        crl=options["crl"],
        insecure=options["insecure"],
    )


class _Stderr(logging.Handler):
    """Writes to whatever standard error is now: the live table redirects it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, safe for a terminal."""
        say(f"ddump: {self.format(record)}")


def _configure_logging(*, quiet: bool, verbose: int) -> None:
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG)
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[_Stderr()], force=True
    )
    logging.getLogger(__package__).setLevel(logging.ERROR if quiet else level)


def _command(word: str) -> click.Command | None:
    """Return the command that a first word names."""
    match word:
        case "status":
            return status_command
        case "segments":
            return segments_command
        case "pki":
            from .pki import pki_command  # it takes long, and few need it

            return pki_command
        case _:
            return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first word names, and return the exit code."""
    ensure_standard_error()
    words = list(sys.argv[1:] if arguments is None else arguments)
    command: click.Command = merge_command
    if words and (named := _command(words[0])) is not None:
        command, words = named, words[1:]
    return run(
        lambda: command.main(words, prog_name=command.name, standalone_mode=False)
    )


def run(command: Callable[[], int]) -> int:
    """Call ``command``; say each of its errors in one line, and return the worst code.

    What nobody foresaw goes on, with its traceback.
    """
    try:
        return printing(command)
    except click.ClickException as exc:
        say(f"ddump: {_told_usage(exc)}")
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except (DdumpError, BrokenPipeError, BaseExceptionGroup) as exc:
        found = list(failures(exc))
        if not all(isinstance(each, DdumpError | BrokenPipeError) for each in found):
            raise
        for each in found:
            if isinstance(each, DdumpError):
                say(f"ddump: {each}")
        return failure_code(exc)


def _told_usage(exc: click.ClickException) -> str:
    """Return in one line what click found wrong, as our own errors are told."""
    missing = isinstance(exc, click.MissingParameter)
    if isinstance(exc, click.BadParameter) and exc.param is not None and not missing:
        return f"{max(exc.param.opts, key=len)}: {exc.message.rstrip('.')}"
    message = exc.format_message().rstrip(".")
    context = exc.ctx if isinstance(exc, click.UsageError) else None
    command = "ddump" if context is None else context.command_path
    return f"{message} (see {command} --help)"
