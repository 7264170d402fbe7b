"""The command line of ``ddump-worker``."""

from __future__ import annotations

import logging
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import uvloop
from click.core import ParameterSource

from ddump_common.api import Link, one_of
from ddump_common.errors import DdumpError, ExitCode, UsageError
from ddump_common.pcap import MAX_SNAPLEN
from ddump_common.units import format_size, parse_size

from . import __version__, _pcap, config, ring
from .capture import DEFAULT_BUFFER_SIZE
from .check import check
from .config import Config, read_file, read_rules
from .listen import parse_address, parse_user
from .log import LogFormat, configure
from .service import serve
from .share import Share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["command", "main"]

_log = logging.getLogger(__name__)


class _Parsed(click.ParamType[object]):
    """What one of our parsers reads."""

    def __init__(self, name: str, parse: Callable[[str], object]) -> None:
        self.name = name
        self._parse = parse

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        try:
            return self._parse(str(value))
        except UsageError as exc:
            self.fail(str(exc), param, ctx)


class _Expression(click.ParamType[str]):
    """A filter: in the environment several are separated by ``;``, as they hold spaces."""

    name = "bpf"
    envvar_list_splitter = ";"


def _directory(text: str) -> Path:
    if not text:
        raise UsageError("'' is not a directory")
    return Path(text)


_ADDRESS = _Parsed("address", parse_address)
_SIZE = _Parsed("size", parse_size)
_SHARE = _Parsed("share", Share.parse)
_LINK = _Parsed("link", one_of(Link))
_LOG_FORMAT = _Parsed("log format", one_of(LogFormat))
_DIRECTORY = _Parsed("directory", _directory)
_FILE = click.Path(path_type=Path, dir_okay=False)
_USER = _Parsed("user", parse_user)
_OF_THE_RING = ("ring_", "segment_", "max_windows")
_EPILOG = """\
Each option may also come from the environment, as DDUMP_WORKER_ and its name
(DDUMP_WORKER_LISTEN; several values are separated by spaces, those of
DDUMP_WORKER_EXCLUDE by semicolons), or from the file of --config, under its name.

\b
Exit status: 0 ended by a signal or checked, 1 failure, 2 what was asked for cannot be,\nsuch as an address that is taken.
"""


def _load(ctx: click.Context, _: click.Parameter, value: Path | None) -> None:
    if value is None:
        return
    try:
        ctx.default_map = said = read_file(value)
        # What no option says.
        ctx.obj = {
            "config_file": value,
            "config_said": said,
            "access": read_rules(value),
        }
    except UsageError as exc:
        raise click.UsageError(str(exc), ctx) from exc


class _Command(click.Command):
    """One that says what is wrong with its usage in one line, as all else is said."""

    def main(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - as click has it
        """Run; usage errors become a line and an exit code."""
        try:
            code = super().main(*arguments, **{**options, "standalone_mode": False})
        except click.ClickException as exc:
            click.echo(f"Error: {_told_usage(exc)}", err=True)
            code = exc.exit_code
        except click.Abort:  # interrupted before it served
            code = 128 + signal.SIGINT
        sys.exit(code)


def _told_usage(exc: click.ClickException) -> str:
    if isinstance(exc, click.BadParameter) and exc.param is not None:
        return f"{max(exc.param.opts, key=len)}: {exc.message.rstrip('.')}"
    return exc.format_message().rstrip(".")


@click.command(
    cls=_Command,
    context_settings={
        "auto_envvar_prefix": "DDUMP_WORKER",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
    epilog=_EPILOG,
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=_load,
    metavar="FILE",
    help="TOML file with the names of these options as keys, and who may do what.",
)
@click.option(
    "--check",
    "checks",
    is_flag=True,
    allow_from_autoenv=False,
    help="Read the files that are named, compile all filters, say what is wrong or ok, and "
    "exit.",
)
@click.option(
    "--log-format",
    type=_LOG_FORMAT,
    default=LogFormat.TEXT.value,
    show_default=True,
    metavar="text|json",
    help="How the log is written to stderr: lines, or JSON objects.",
)
@click.option(
    "--listen",
    type=_ADDRESS,
    multiple=True,
    default=[config.DEFAULT_LISTEN],
    show_default=True,
    metavar="ADDRESS:PORT|unix:PATH",
    help="Where to listen; repeatable.",
)
@click.option(
    "--listen-group",
    metavar="GROUP",
    help="The group that may connect to the unix sockets, which are made 0660.",
)
@click.option(
    "--allow-anonymous",
    is_flag=True,
    help="Let whoever reaches a TCP address capture, without telling who it is.",
)
@click.option(
    "--allow-plaintext",
    is_flag=True,
    help="Listen without TLS on addresses that are not loopback.",
)
@click.option(
    "--tls-cert",
    type=_FILE,
    metavar="FILE",
    help="Serve TCP addresses by TLS with this certificate (PEM, with its chain).",
)
@click.option(
    "--tls-key",
    type=_FILE,
    metavar="FILE",
    help="Its private key, when it is not in the same file.",
)
@click.option(
    "--tls-client-ca",
    type=_FILE,
    metavar="FILE",
    help="Let in only who shows a certificate of these authorities.",
)
@click.option(
    "--tls-crl",
    type=_FILE,
    metavar="FILE",
    help="Certificates that these authorities have revoked (PEM), also of clients of the "
    "proxy.",
)
@click.option(
    "--token-file",
    type=_FILE,
    metavar="FILE",
    help="Bearer tokens, NAME:TOKEN a line; only its owner may read the file.",
)
@click.option(
    "--proxy-uid",
    type=_USER,
    metavar="USER",
    help="Believe what this user's proxy says of its clients, on unix sockets.",
)
@click.option(
    "--server-name",
    multiple=True,
    metavar="NAME",
    help="A name by which clients may call this worker, beside the host's own and those "
    "of its certificate; repeatable.",
)
@click.option(
    "--exclude",
    type=_Expression(),
    multiple=True,
    metavar="BPF",
    help="Never capture what matches, such as the port of a proxy in front; repeatable. "
    "The worker's own ports are left out without being named.",
)
@click.option(
    "--promiscuous",
    multiple=True,
    metavar="IFACE",
    help="Keep an interface promiscuous, for mirror ports; repeatable.",
)
@click.option(
    "--buffer-size",
    type=_SIZE,
    default=format_size(DEFAULT_BUFFER_SIZE),
    show_default=True,
    metavar="SIZE",
    help="Kernel memory for each live capture.",
)
@click.option(
    "--capture-memory",
    type=_SIZE,
    default=format_size(config.DEFAULT_CAPTURE_MEMORY),
    show_default=True,
    metavar="SIZE",
    help="The most that all live captures together may take.",
)
@click.option(
    "--max-streams",
    type=click.IntRange(1, 4096),
    default=config.DEFAULT_MAX_STREAMS,
    show_default=True,
    metavar="N",
    help="The most captures at once.",
)
@click.option(
    "--max-connections",
    type=click.IntRange(1, 65536),
    default=config.DEFAULT_MAX_CONNECTIONS,
    show_default=True,
    metavar="N",
    help="The most connections at once.",
)
@click.option(
    "--ring-dir",
    type=_DIRECTORY,
    metavar="DIR",
    help="Record what crosses this host into a ring of files in this directory.",
)
@click.option(
    "--ring-size",
    type=_SIZE,
    default=format_size(ring.DEFAULT_SIZE),
    show_default=True,
    metavar="SIZE",
    help="The most that the ring may take on disk.",
)
@click.option(
    "--segment-size",
    type=_SIZE,
    default=format_size(ring.DEFAULT_SEGMENT_SIZE),
    show_default=True,
    metavar="SIZE",
    help="Size of each file of the ring; the oldest goes as a whole.",
)
@click.option(
    "--ring-reserve",
    type=_SHARE,
    default=str(ring.DEFAULT_RESERVE),
    show_default=True,
    metavar="SIZE,PERCENT%",
    help="Space of the file system that stays free: the greater of both, or one of them "
    "alone.",
)
@click.option(
    "--ring-pinned",
    type=_SHARE,
    default=str(ring.DEFAULT_PINNED),
    show_default=True,
    metavar="SIZE|PERCENT%",
    help="The most that may stay on disk beside the ring, of what is still being read.",
)
@click.option(
    "--ring-link",
    type=_LINK,
    default=Link.SLL.value,
    show_default=True,
    metavar="sll|sll2",
    help="Link type of the ring; sll2 keeps each packet's interface, sll VLAN tags.",
)
@click.option(
    "--ring-interface",
    multiple=True,
    metavar="IFACE",
    help="Record only this interface; repeatable.",
)
@click.option(
    "--ring-filter", default="", metavar="BPF", help="Record only what matches."
)
@click.option(
    "--ring-snaplen",
    type=click.IntRange(1, MAX_SNAPLEN),
    default=MAX_SNAPLEN,
    show_default=True,
    metavar="N",
    help="Bytes recorded of each packet.",
)
@click.option(
    "--ring-buffer-size",
    type=_SIZE,
    default=format_size(DEFAULT_BUFFER_SIZE),
    show_default=True,
    metavar="SIZE",
    help="Kernel memory for the recorder, beside --capture-memory.",
)
@click.option(
    "--max-windows",
    type=click.IntRange(1, 4096),
    default=config.DEFAULT_MAX_WINDOWS,
    show_default=True,
    metavar="N",
    help="The most that may read from the ring at once.",
)
@click.version_option(
    __version__,
    prog_name="ddump-worker",
    message=f"%(prog)s, version %(version)s\n{_pcap.library_version()}",
)
@click.pass_context
def command(ctx: click.Context, /, *, checks: bool, **options: Any) -> None:  # noqa: ANN401 - what click has parsed
    """Capture packets on this host and stream them over HTTP.

    \b
        ddump-worker --listen 127.0.0.1:8475 --allow-anonymous
        curl -sN 'http://127.0.0.1:8475/capture?filter=icmp' | tcpdump -nr-

    With a ring it also remembers the last minutes:

    \b
        ddump-worker --ring-dir /var/lib/ddump/ring --ring-size 2GB --allow-anonymous
        curl -s 'http://127.0.0.1:8475/ring?last=5m' | tcpdump -nr-

    Needs the capability CAP_NET_RAW. Whoever reaches the worker can read this host's
    traffic: it listens on loopback alone, unless told otherwise.
    """  # noqa: D301 - click takes a real backspace for "do not wrap this"
    _check_ring_options(ctx)
    configure(options["log_format"])
    is_text = options["log_format"] is LogFormat.TEXT
    announce = _announce if is_text else partial(_log.info, "listening on %s")
    complain = _complain if is_text else partial(_log.error, "%s")
    try:
        told = Config(**options, **(ctx.obj or {}))
        if checks:
            uvloop.run(check(told))
            click.echo("ok")
        else:
            uvloop.run(serve(told, announce=announce))
    except DdumpError as exc:
        sys.exit(_report((exc,), complain))
    except BaseExceptionGroup as group:
        # Not except*: before Python 3.11.4 that packs what is raised in it.
        foreseen, unforeseen = group.split(DdumpError)
        if foreseen is None or unforeseen is not None:
            raise
        sys.exit(_report(foreseen.exceptions, complain))


def _check_ring_options(ctx: click.Context) -> None:
    if ctx.params["ring_dir"] is not None:
        return
    for name in ctx.params:
        is_said = ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
        if is_said and name.startswith(_OF_THE_RING):
            option = "--" + name.replace("_", "-")
            raise click.UsageError(
                f"{option}: there is no ring without --ring-dir", ctx
            )


def _announce(address: str) -> None:
    click.echo(f"listening on {address}", err=True)


def _complain(error: DdumpError) -> None:
    click.echo(f"Error: {error}", err=True)


def _report(
    errors: Iterable[DdumpError | BaseExceptionGroup[DdumpError]],
    complain: Callable[[DdumpError], object],
) -> ExitCode:
    worst = ExitCode.OK
    for error in errors:
        if isinstance(error, BaseExceptionGroup):
            worst = max(worst, _report(error.exceptions, complain))
        else:
            complain(error)
            worst = max(worst, error.exit_code)
    return worst


def main() -> None:
    """Run the command line of this process."""
    command(prog_name="ddump-worker")
