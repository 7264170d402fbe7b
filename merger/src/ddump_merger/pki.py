"""``ddump pki``: a small certificate authority for people who have none."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddump_common.errors import ExitCode
from ddump_common.text import printable
from ddump_common.timespec import format_time

from .authority import AuthorityFolder, told_serial
from .console import say
from .table import print_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ddump_common.pki import Issued

    from .files import Place

__all__ = ["pki_command"]

_LONGEST_LINE = 5000  # a path has 4095 bytes at most

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_EPILOG = """\b
Exit status:
  0  done
  1  failure
  2  wrong usage, or an authority that is not as it has to be
  5  its files cannot be written
"""

_dir_option = click.option(
    "--dir", "folder", metavar="DIR", default="ddump-pki", show_default=True,
    envvar="DDUMP_PKI", type=click.Path(path_type=Path),
    help="The folder of the authority [env DDUMP_PKI].",
)  # fmt: skip
_renew_option = click.option(
    "--renew", is_flag=True,
    help="Also when there is a certificate that holds, which goes on to hold.",
)  # fmt: skip


@click.group(
    "ddump pki", epilog=_EPILOG, context_settings=_CONTEXT, no_args_is_help=False
)
def pki_command() -> None:
    """Make and revoke the certificates that workers and clients show each other.

    \b
        ddump pki init
        ddump pki server web1.example.org web1 10.0.0.1
        ddump pki client alice
        ddump pki revoke alice

    A worker then needs servers/NAME.pem, servers/NAME.key, ca.pem and crl.pem; a client
    clients/NAME.pem, clients/NAME.key and ca.pem. Nobody needs ca.key but this command.
    """  # noqa: D301 - click takes a real backspace for "do not wrap this"


@pki_command.command("init", context_settings=_CONTEXT)
@_dir_option
def _init(folder: Path) -> ExitCode:
    """Make a new authority, which is valid for ten years."""
    made = AuthorityFolder.create(folder, now_ns=time.time_ns())
    certificate = made.authority.credential.certificate
    _print(f"{made.certificate}: {certificate.subject.rfc4514_string()}")
    _print(f"{made.revocation_list}: nothing is revoked")
    return ExitCode.OK


@pki_command.command("server", context_settings=_CONTEXT)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@_renew_option
@_dir_option
def _server(names: tuple[str, ...], folder: Path, *, renew: bool) -> ExitCode:
    """Make the certificate of one server, for 397 days.

    Its NAMEs are those by which clients call it, DNS names and addresses; its files have
    the first one. That alone with --renew: all that it had.
    """
    now_ns = time.time_ns()
    with _opened(folder, now_ns) as authority:
        signed = authority.server(names, now_ns=now_ns, renew=renew)
        place = signed.place
        _print_place(place, told=f": {' '.join(signed.names)}")
        if signed.gone:
            gone = " ".join(signed.gone)
            say(f"ddump: {place.certificate}: not in it any more: {gone}")
    return ExitCode.OK


@pki_command.command("client", context_settings=_CONTEXT)
@click.argument("name", metavar="NAME")
@_renew_option
@_dir_option
def _client(name: str, folder: Path, *, renew: bool) -> ExitCode:
    """Make the certificate of a client, for 397 days.

    Workers know it as cert:CN=NAME.
    """
    now_ns = time.time_ns()
    with _opened(folder, now_ns) as authority:
        _print_place(authority.client(name, now_ns=now_ns, renew=renew))
    return ExitCode.OK


@pki_command.command("revoke", context_settings=_CONTEXT)
@click.argument("words", metavar="NAME...", nargs=-1, required=True)
@_dir_option
def _revoke(words: tuple[str, ...], folder: Path) -> ExitCode:
    """Revoke all certificates of a NAME, or the one with that serial number.

    servers/NAME and clients/NAME tell two of one name apart. It takes effect where the
    new crl.pem is: copy it to workers and proxies, and have them read it (SIGHUP).
    """
    now_ns = time.time_ns()
    with _opened(folder, now_ns) as authority:
        for each in authority.revoke(words, now_ns=now_ns):
            _print(f"revoked: {each.kind} {each.name} {told_serial(each.serial)}")
        _print(f"{authority.revocation_list}: has to be where certificates are checked")
    return ExitCode.OK


@pki_command.command("show", context_settings=_CONTEXT)
@_dir_option
def _show(folder: Path) -> ExitCode:
    """List every certificate that was ever made."""
    now_ns = time.time_ns()
    with _opened(folder, now_ns) as authority:
        certificate = authority.authority.credential.certificate
        rows = [["kind", "name", "state", "until", "serial", "names"]]
        rows += [_row(each, authority, now_ns) for each in authority.issued()]
    until = f"{certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
    _print(f"{certificate.subject.rfc4514_string()}, until {until}")
    if len(rows) > 1:
        print_table(rows)
    return ExitCode.OK


def _row(issued: Issued, authority: AuthorityFolder, now_ns: int) -> list[str]:
    revoked_ns = authority.revocations.revoked_ns.get(issued.serial)
    if revoked_ns is not None:
        state = f"revoked {format_time(revoked_ns)}"
    else:
        state = "valid" if now_ns < issued.end_ns else "expired"
    until = format_time(issued.end_ns)
    serial, names = told_serial(issued.serial), " ".join(issued.names)
    return [issued.kind, issued.name, state, until, serial, names]


@contextlib.contextmanager
def _opened(folder: Path, now_ns: int) -> Iterator[AuthorityFolder]:
    with AuthorityFolder.open(folder, now_ns=now_ns) as authority:
        for line in authority.mended:
            say(f"ddump: {line}")
        yield authority


def _print_place(place: Place, *, told: str = "") -> None:
    _print(f"{place.certificate}{told}")
    _print(f"{place.key}: a secret")


def _print(line: str) -> None:
    click.echo(printable(line, limit=_LONGEST_LINE))
