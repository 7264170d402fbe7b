"""What of a request reaches a worker behind ``nginx/ddump.conf``, to the byte.

Something that writes all down stands in the worker's place.
"""

from __future__ import annotations

import base64
import contextlib
import re
import shutil
import socket
import ssl
import threading
from urllib.parse import quote, unquote

import pytest
from cryptography import x509

from ddump_common.api import ADDRESS_HEADER, CERTIFICATE_HEADER, USER_HEADER
from support.nginx import USER, socket_path
from support.site import site

pytestmark = [pytest.mark.live, pytest.mark.process]

INJECTED = f"{USER_HEADER}: root"


@pytest.fixture(scope="module")
def place():
    with site() as made:
        yield made


@pytest.fixture(scope="module")
def mine(place):
    return place.authority.client("responder")


class Witness:
    """Takes a worker's place, and writes down all that nginx says to it."""

    def __init__(self, listening, prefix):
        self.prefix = prefix
        self.said: list[bytes] = []
        self._listening = listening

    def serve(self):
        while True:
            connection, _ = self._listening.accept()
            with connection, connection.makefile("rb") as lines:
                head = b"".join(iter(lines.readline, b"\r\n"))
                if not head:
                    return  # the test is over
                if b"transfer-encoding: chunked" in head.lower():
                    head += b"".join(iter(lines.readline, b"0\r\n"))
                    head += b"".join(iter(lines.readline, b"\r\n"))
                self.said.append(head)
                connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    @property
    def fields(self) -> dict[str, list[str]]:
        """The fields of the last request, by their names in lower case."""
        found: dict[str, list[str]] = {}
        for line in self.said[-1].decode("latin-1").split("\r\n")[1:-1]:
            name, _, value = line.partition(": ")
            found.setdefault(name.lower(), []).append(value)
        return found


@pytest.fixture
def witness(place, request):
    name = getattr(request, "param", "worker")
    path = socket_path(place.folder, name)
    aside = path.with_suffix(".aside")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        shutil.chown(path, "root", USER)
        path.chmod(0o660)
        listening.listen()
        made = Witness(listening, "" if name == "worker" else f"/hosts/{name}")
        thread = threading.Thread(target=made.serve)
        thread.start()
        try:
            yield made
        finally:
            with socket.socket(socket.AF_UNIX) as last:
                last.connect(str(path))
                last.sendall(b"\r\n")
                thread.join()
            path.unlink()
            with contextlib.suppress(FileNotFoundError):
                aside.rename(path)


both = pytest.mark.parametrize("witness", ["worker", "web1"], indirect=True)


def asked(place, pair, request):
    """Send ``request`` as it is; return the status of the answer, 0 when there is none."""
    with place.connect(place.context(pair)) as client:
        client.sendall(request)
        answer = b""
        with contextlib.suppress(ConnectionResetError, ssl.SSLEOFError):
            while piece := client.recv(65536):
                answer += piece
    return int(answer[9:12]) if answer else 0


@both
@pytest.mark.parametrize(
    "path",
    [
        "/{}",
        "/{}/capture",
        "/capture{}",
        "/capture/{}",
        "/a%2f..%2f{}",
        "/./..;/{}",
        "/capture?filter={}",
        "/capture?{}",
        "/?a=b#{}",
    ],
)
@pytest.mark.parametrize(
    "line_end",
    ["%0d%0a", "%0D%0A", "%0a", "%0d", "%250d%250a", "%E5%98%8D%E5%98%8A", "%00%0d%0a"],
)
def test_no_line_is_injected_by_a_path(place, mine, witness, path, line_end):
    sent = path.format(f"%20HTTP/1.1{line_end}{quote(INJECTED)}{line_end}{line_end}x")
    status = asked(
        place,
        mine,
        f"GET {witness.prefix}{sent} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode(),
    )
    assert status in {204, 400}
    assert len(witness.said) == (status == 204)  # one request, or none
    for said in witness.said:
        first, *lines = said.decode("ascii").split("\r\n")
        assert re.fullmatch(r"GET /[!-~]* HTTP/1\.1", first)
        assert "\n" not in "".join(lines)
        assert "\r" not in "".join(lines)
        assert set(witness.fields) == {
            "host",
            "connection",
            "ddump-client-certificate",
            "ddump-client-address",
        }


@both
@pytest.mark.parametrize("line_end", ["%0d%0a", "%0a", "%0d", "%00"])
def test_no_line_is_injected_by_a_prefix(place, mine, witness, line_end):
    injected = f"{line_end}{quote(INJECTED)}{line_end}"
    for path in (
        f"/hosts/web1{injected}/capture",
        f"/hosts{injected}/web1/capture",
        f"/hosts/{injected}web1/capture",
        f"/hosts/../{injected}/hosts/web1/capture",
        f"/x/../hosts/web1/{injected}/../capture",
    ):
        status = asked(
            place,
            mine,
            f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode(),
        )
        assert status in {204, 400, 404, 502}, path
    for said in witness.said:
        first, _, rest = said.partition(b"\r\n")
        assert re.fullmatch(rb"GET /[!-~]* HTTP/1\.1", first)
        assert b"root" not in rest


SPELLED = [
    "{}: root",
    "{}:root",
    "{}:\troot",
    "{}: \r\n root",
    "{}: root\r\n{}: root",
    "{} : root",
    " {}: root",
    "\t{}: root",
    "X: y\r\n {}: root",
    "X: y\n{}: root",
    "X: y\r{}: root",
    "X: y\0\r\n{}: root",
    "{}\0: root",
    "Connection: {}\r\n{}: root",
    "Connection: close, {}",
]
CASED = [str, str.lower, str.upper, str.swapcase, lambda name: name.replace("-", "_"),
         lambda name: name.replace("-", "_", 1), lambda name: name.replace("-", ".")]  # fmt: skip


@pytest.mark.parametrize("shown", ["certificate", "password", "token"])
@pytest.mark.parametrize("spelled", SPELLED)
def test_what_clients_say_of_themselves_is_overwritten(
    place, mine, witness, shown, spelled
):
    own = {
        "certificate": "",
        "password": f"Authorization: Basic {basic(place.user, place.password)}\r\n",
        "token": f"Authorization: Bearer {place.token}\r\n",
    }[shown]
    reached = 0
    for name in (USER_HEADER, CERTIFICATE_HEADER, ADDRESS_HEADER):
        for cased in CASED:
            head = (
                f"GET {witness.prefix}/capture HTTP/1.1\r\nHost: a\r\n{own}"
                f"{spelled.replace('{}', cased(name))}\r\nConnection: close\r\n\r\n"
            )
            status = asked(
                place, mine if shown == "certificate" else None, head.encode()
            )
            assert status in {204, 400}, (name, spelled)
            reached += status == 204
            assert len(witness.said) == reached
            if status == 204:
                check_identity(place, mine, witness.fields, shown)


def check_identity(place, mine, fields, shown):
    certificates = fields.get(CERTIFICATE_HEADER.lower(), [])
    if shown == "certificate":
        (escaped_pem,) = certificates
        assert re.fullmatch("(?:[A-Za-z0-9_.~-]|%[0-9A-F]{2})+", escaped_pem)
        found = x509.load_pem_x509_certificate(unquote(escaped_pem).encode())
        assert found == mine.certificate
    else:
        assert not certificates
    users = [place.user] if shown == "password" else []
    assert fields.get(USER_HEADER.lower(), []) == users
    (address,) = fields[ADDRESS_HEADER.lower()]
    assert re.fullmatch(rf"{re.escape(place.client.address)}:[0-9]{{1,5}}", address)
    tokens = [f"Bearer {place.token}"] if shown == "token" else []
    assert fields.get("authorization", []) == tokens
    # No other spelling of these names is there either, nor the value.
    alike = [re.sub(r"[^a-z]", "", name) for name in fields]
    assert len([name for name in alike if name.startswith("ddumpclient")]) == 1 + (
        shown != "token"
    )
    assert "root" not in str(fields)


def basic(user, password):
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def test_a_user_that_comes_with_a_certificate_is_not_believed(place, mine, witness):
    # Where a certificate is enough, nobody has checked the password.
    for credentials in (basic("root", "x"), basic(place.user, place.password)):
        head = (
            f"GET {witness.prefix}/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
            f"Authorization: Basic {credentials}\r\n\r\n"
        )
        assert asked(place, mine, head.encode()) == 204
        check_identity(place, mine, witness.fields, "certificate")


@pytest.fixture
def namesakes(place):
    """Users with the same password, whose names differ by spaces alone."""
    users = place.folder / "etc/ddump/users"
    before = users.read_text()
    name, colon, password = before.splitlines()[0].partition(":")
    assert name == place.user
    made = [f" {name}", f"{name} ", f"{name}\t", " "]
    users.write_text(before + "".join(f"{e}{colon}{password}\n" for e in made))
    try:
        yield made
    finally:
        users.write_text(before)


def test_a_user_is_not_one_who_differs_by_a_space(place, witness, namesakes):
    for user in namesakes:
        head = (
            f"GET {witness.prefix}/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
            f"Authorization: Basic {basic(user, place.password)}\r\n\r\n"
        )
        assert asked(place, None, head.encode()) == 204
        assert USER_HEADER.lower() not in witness.fields


def test_a_field_at_the_end_of_a_body_is_none(place, mine, witness):
    head = (
        f"POST {witness.prefix}/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
        "Transfer-Encoding: chunked\r\nTrailer: Ddump-Client-User\r\n\r\n"
        "1\r\nx\r\n0\r\nDdump-Client-User: root\r\n\r\n"
    )
    assert asked(place, mine, head.encode()) == 204
    assert b"root" not in b"".join(witness.said)


def test_the_name_of_a_user_makes_no_lines(place, witness):
    for user in (f"{place.user}\r\n{INJECTED}", f"{place.user}\0", "", ":"):
        head = (
            f"GET {witness.prefix}/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
            f"Authorization: Basic {basic(user, place.password)}\r\n\r\n"
        )
        assert asked(place, None, head.encode()) == 401
    assert not witness.said
