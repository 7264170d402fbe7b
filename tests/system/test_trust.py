"""Who gets in, and as whom: through nginx, and at the bare worker; by curl and ``ddump``.

Every way is tried with everything that can be shown. What a worker took somebody for is
read in its audit trail.
"""

from __future__ import annotations

import contextlib
import json
import re
import ssl
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from support.certificates import EARLY, EXPIRED, Authority, self_signed
from support.nginx import PORT, USER, socket_path
from support.programs import started
from support.site import CERTIFICATE_PORT, NAMESAKE, bearer, certificate, site

if TYPE_CHECKING:
    from support.certificates import Pair

pytestmark = [pytest.mark.live, pytest.mark.process]

CAPTURE = "/capture?duration=1ms&filter=udp%20port%209"


@pytest.fixture(scope="module")
def place():
    with site() as made:
        yield made


@pytest.fixture(scope="module")
def spoofed(place):
    """What a proxy would say of two who would be let in, in several spellings."""
    victim = place.authority.client("victim")
    return [
        word
        for field, value in (("User", place.user), ("Certificate", escaped(victim)))
        for name in (f"Ddump-Client-{field}", f"ddump-client-{field.lower()}",
                     f"Ddump_Client_{field}")
        for word in ("-H", f"{name}: {value}")
    ]  # fmt: skip


def escaped(pair: Pair) -> str:
    """Return a certificate as nginx writes it into a field."""
    return quote(pair.cert.read_text(), safe="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What somebody shows."""

    pair: Pair | None = None
    token: str = ""
    user: str = ""
    password: str = ""

    @property
    def curl(self) -> list:
        return [
            *(certificate(self.pair) if self.pair else ()),
            *(bearer(self.token) if self.token else ()),
            *(("-u", f"{self.user}:{self.password}") if self.user else ()),
        ]

    def ddump(self, folder) -> list:
        options: list = certificate(self.pair) if self.pair else []
        for option, secret in (("token", self.token), ("password", self.password)):
            if secret:
                file = folder / option
                file.touch(0o600)
                file.write_text(f"{secret}\n")
                options += [f"--{option}-file", file]
        return [*options, *(("--user", self.user) if self.user else ())]


@pytest.fixture(scope="module")
def shown(place):
    """Everything that can be shown, by the names that the tests give it."""
    authority, folder = place.authority, place.folder / "keys"
    made = {
        "nothing": Shown(),
        "right certificate": Shown(pair=authority.client("responder")),
        "other authority": Shown(pair=Authority(folder, "other").client("responder")),
        "expired": Shown(pair=authority.client("responder", made=EXPIRED)),
        "not yet valid": Shown(pair=authority.client("responder", made=EARLY)),
        "revoked": Shown(pair=authority.client("responder")),
        "self-signed": Shown(pair=self_signed(folder, "responder")),
        "a server's": Shown(pair=authority.server("responder")),
        "right token": Shown(token=place.token),
        "wrong token": Shown(token=place.token[:-1] + "~"),
        "right password": Shown(user=place.user, password=place.password),
        "wrong password": Shown(user=place.user, password=place.password[:-1]),
        "unknown user": Shown(user="responder", password=place.password),
        # Named as a certificate's subject is, which makes no certificate of him.
        "named like a certificate": Shown(user=NAMESAKE, password=place.password),
    }
    right = made["right certificate"].pair
    made["certificate, right token"] = Shown(pair=right, token=place.token)
    made["certificate, wrong token"] = Shown(pair=right, token="~" * 32)
    made["revoked, right token"] = Shown(pair=made["revoked"].pair, token=place.token)
    place.revoke(made["revoked"].pair)
    place.reload()
    return made


RIGHT = "cert:CN=responder"
TOKEN = "token:tests"  # noqa: S105 - a name
NOT_TRUSTED = "unable to verify the first certificate|self-signed|get certificate CRL"
# What is shown, and what comes of it: the identity, or what is said by nginx or, through
# TLS, to curl and by ddump.
THROUGH_NGINX = {
    "nothing": (401, "nothing was shown"),
    "right certificate": RIGHT,
    "other authority": (403, NOT_TRUSTED, "does not know its authority"),
    "expired": (403, "has expired", "has expired, it was valid until"),
    "not yet valid": (403, "not yet valid", "not valid before"),
    "revoked": (403, "revoked", r"\(CN=responder\): it is revoked"),
    "self-signed": (403, NOT_TRUSTED, "does not know its authority"),
    "a server's": (403, "certificate purpose", "not one for a client"),
    "right token": TOKEN,
    "wrong token": (401, "token is not known"),
    "right password": "user:alice",
    "wrong password": (401, "password that is wrong"),
    "unknown user": (401, "password that is wrong"),
    "named like a certificate": "user:CN=responder",
    "certificate, right token": TOKEN,
    "certificate, wrong token": (401, "token is not known"),
    "revoked, right token": (403, "revoked"),
}
ASKED_FOR_CERTIFICATES = {
    "nothing": (0, "certificate required", "wants a client's certificate"),
    "right certificate": RIGHT,
    "other authority": (0, "unknown ca", "does not know its authority"),
    "expired": (0, "certificate expired", "has expired"),
    "not yet valid": (0, "bad certificate", "not valid before"),
    "revoked": (0, "certificate revoked", "is revoked"),
    "self-signed": (0, "unknown ca", "does not know its authority"),
    "a server's": (0, "unsupported certificate", "not one for a client"),
    "right token": (0, "certificate required", "wants a client's certificate"),
    "right password": (0, "certificate required", "wants a client's certificate"),
    "certificate, right token": TOKEN,
    "certificate, wrong token": (401, "token is not known"),
    "revoked, right token": (0, "certificate revoked", "is revoked"),
}
ASKED_FOR_TOKENS = {
    "nothing": (401, "nothing says who asks"),
    # Not asked for, so not shown.
    "right certificate": (401, "nothing says who asks"),
    "revoked": (401, "nothing says who asks"),
    "right token": TOKEN,
    "wrong token": (401, "token is not known"),
    "right password": (401, "knows no passwords"),
    "wrong password": (401, "knows no passwords"),
    "certificate, right token": TOKEN,
    "certificate, wrong token": (401, "token is not known"),
}
MATRIX = [
    pytest.param(way, what, expected, id=f"{way}-{what}")
    for way, rows in (
        ("nginx", THROUGH_NGINX),
        ("certificates", ASKED_FOR_CERTIFICATES),
        ("tokens", ASKED_FOR_TOKENS),
    )
    for what, expected in rows.items()
]


def at(place, way):
    """Return where a way begins, and the worker at its end."""
    return {
        "nginx": (place.url, place.worker),
        "certificates": (place.certificate_url, place.worker),
        "tokens": (place.token_url, place.bare),
    }[way]


STATUS = "/api/v1/status"


def await_capture(worker, since):
    """Return what is said of the next capture, from line ``since`` on."""
    return json.loads(worker.await_said('"path": "/capture"', since))


def opened(place, url, known):
    """Return how many streams a worker has ever had."""
    return json.loads(place.curl(*known, f"{url}{STATUS}").body)["totals"]["streams"]


@pytest.mark.parametrize(("way", "what", "expected"), MATRIX)
def test_curl(place, shown, spoofed, way, what, expected):
    url, worker = at(place, way)
    since = len(worker.said)
    answer = place.curl(*shown[what].curl, *spoofed, f"{url}{CAPTURE}")
    address = f'"address": "{place.client.address}:{answer.port}"'
    if isinstance(expected, str):
        assert answer.status == 200, answer
        line = json.loads(worker.await_said(address, since))
        assert line["identity"] == expected
        assert line["ended"] == "duration"
        return
    status, told = expected[:2]
    assert answer.status == status, answer
    if status == 0:
        assert re.search(told, answer.error), answer
    else:
        assert re.search(told, answer.problem["detail"]), answer
    if status == 401:
        assert answer.headers["www-authenticate"], answer
    # Nobody was let in, and nothing was opened for him. What is said of a request is said
    # before that of a later one.
    later = place.curl(*shown["certificate, right token"].curl, f"{url}{STATUS}")
    worker.await_said(f'"address": "{place.client.address}:{later.port}"', since)
    lines = [json.loads(each) for each in worker.said[since:] if address in each]
    is_workers_own = "ddump-host" in answer.headers
    assert len([each for each in lines if each["message"] == "request"]) == (
        1 if is_workers_own else 0
    )
    for line in lines:
        assert line.get("identity") is None
        assert "stream" not in line


@pytest.mark.parametrize(("way", "what", "expected"), MATRIX)
def test_ddump(place, shown, tmp_path, way, what, expected):
    url, worker = at(place, way)
    since = len(worker.said)
    done = place.run(
        "--ca", place.authority.cert, *shown[what].ddump(tmp_path), "-f", "udp port 9",
        "--duration", "1ms", "-w", tmp_path / "out.pcap", url,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    secrets = {place.token, place.password, shown[what].token, shown[what].password}
    assert not any(secret in done.stderr for secret in secrets - {""})
    if isinstance(expected, str):
        assert done.returncode == 0, done
        assert await_capture(worker, since)["identity"] == expected
        return
    status, told = expected[0], expected[-1]
    assert done.returncode == 3, done
    first = done.stderr.splitlines()[0]
    assert first.startswith(f"ddump: {place.host.address}: ")
    assert re.search(told, first)
    if status:
        assert f": {status}: " in first


def test_the_workers_name_is_verified(place, shown, tmp_path):
    # An address of the same host which is in no certificate.
    other = "10.77.0.77"
    place.host.run("ip", "addr", "add", f"{other}/24", "dev", "eth0")
    url = place.url.replace(place.host.address, other)
    answer = place.curl(*shown["right certificate"].curl, f"{url}/api/v1/health")
    assert answer.status == 0
    assert "no alternative certificate subject name matches" in answer.error
    for target in (url, place.certificate_url.replace(place.host.address, other)):
        since = len(place.worker.said)
        done = place.run(
            "--ca", place.authority.cert, *shown["right certificate"].ddump(tmp_path),
            "-w", tmp_path / "out.pcap", target,
        )  # fmt: skip
        assert done.returncode == 3
        assert place.host.address in done.stderr  # which name it has
        assert not any("responder" in line for line in place.worker.said[since:])


@pytest.mark.parametrize("way", ["nginx", "certificates", "tokens"])
def test_old_versions_of_tls_are_not_spoken(place, shown, way):
    url, _ = at(place, way)
    known = shown["certificate, right token"].curl
    old = ("--ciphers", "DEFAULT@SECLEVEL=0", "--tlsv1.0", "--tls-max")
    assert place.curl(*known, *old, "1.1", f"{url}{STATUS}").status == 0
    assert place.curl(*known, *old, "1.2", f"{url}{STATUS}").status == 200


@pytest.mark.parametrize("way", ["nginx", "certificates", "tokens"])
def test_plain_http_is_told_of_tls(place, way):
    url, _ = at(place, way)
    answer = place.curl(f"{url}{CAPTURE}".replace("https", "http"))
    assert answer.status == 400
    assert "https" in f"{answer.problem}"


@pytest.mark.parametrize("way", ["nginx", "certificates", "tokens"])
@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "/..%2f..%2f..%2fetc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/capture/../../../etc/shadow",
        "//etc/passwd",
        "/./etc/passwd",
        "/etc/passwd%00.json",
        "/hosts/web1/../../../etc/passwd",
        "/hosts/../../etc/passwd",
        "/hosts/web1/..%2f..%2fworker.sock",
        "/file:///etc/passwd",
        "/\\..\\..\\etc\\passwd",
        "/api/v1/../../../run/ddump/worker.sock",
    ],
)
def test_no_path_leads_out(place, shown, way, path):
    url, _ = at(place, way)
    answer = place.curl(
        *shown["certificate, right token"].curl, "--path-as-is", f"{url}{path}"
    )
    assert answer.status in {400, 404, 502}, answer
    assert b"root:" not in answer.body


@pytest.mark.parametrize("way", ["nginx", "certificates", "tokens"])
def test_what_is_too_long_is_refused(place, shown, way, tmp_path):
    url, _ = at(place, way)
    known = shown["certificate, right token"].curl
    before = opened(place, url, known)
    for arguments in (
        [f"{url}/capture?filter=" + "x" * 40_000],
        [f"{url}/capture?filter=" + "%61" * 4097],
        [f"{url}/" + "x" * 20_000],
        [f"{url}/capture?" + "&".join(f"interface=i{n}" for n in range(300))],
        ["-H", "X-Long: " + "x" * 10_000, f"{url}{CAPTURE}"],
        ["-H", "X-Long: " + "x" * 40_000, f"{url}{CAPTURE}"],
        ["-H", "X" * 10_000 + ": x", f"{url}{CAPTURE}"],
        ["-H", "Authorization: Bearer " + "x" * 9000, f"{url}{CAPTURE}"],
        ["-H", f"Ddump-Client-Certificate: {'%41' * 20_000}", f"{url}{CAPTURE}"],
        [*(word for n in range(200)
           for word in ("-H", f"X-{n}: {'x' * 1000}")), f"{url}{CAPTURE}"],
        ["--data-binary", "x" * 100_000, f"{url}{CAPTURE}"],
    ):  # fmt: skip
        answer = place.curl(*known, *arguments)
        assert answer.status in {400, 401, 404, 405, 413, 414, 431}, (arguments, answer)
    assert opened(place, url, known) == before


@pytest.mark.parametrize("field", ["User", "Certificate"])
def test_the_proxy_alone_is_believed_on_the_socket(place, field):
    # Who may connect to the socket is not yet the proxy: that is who connects as www-data.
    path = socket_path(place.folder)
    alice = place.authority.client("alice")
    said = {"User": "alice", "Certificate": escaped(alice)}[field]
    ask = [
        "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--unix-socket", str(path),
        "-H", f"Ddump-Client-{field}: {said}", "-H", "Ddump-Client-Address: 192.0.2.1:1",
        f"http://worker{CAPTURE}",
    ]  # fmt: skip
    known = {"User": "user:alice", "Certificate": "cert:CN=alice"}[field]
    for user, status, identity, address in (
        ("root", b"401", None, "unix"),
        ("nobody", b"401", None, "unix"),
        (USER, b"200", known, "192.0.2.1:1"),
    ):
        become = ["setpriv", f"--reuid={user}", f"--regid={USER}", "--clear-groups"]
        since = len(place.worker.said)
        done = subprocess.run([*become, *ask], check=True, capture_output=True)
        assert done.stdout == status
        line = await_capture(place.worker, since)
        assert (line["identity"], line["address"]) == (identity, address)


@pytest.mark.parametrize("way", ["nginx", "certificates"])
@pytest.mark.parametrize("field", ["User", "Certificate"])
def test_who_is_known_is_nobody_else_for_saying_so(place, shown, way, field):
    url, worker = at(place, way)
    said = {
        "User": place.user,
        "Certificate": escaped(place.authority.client("victim")),
    }[field]
    claim = ("-H", f"Ddump-Client-{field}: {said}")
    since = len(worker.said)
    known = shown["right certificate"].curl
    assert place.curl(*known, *claim, f"{url}{CAPTURE}").status == 200
    assert await_capture(worker, since)["identity"] == RIGHT


@pytest.fixture(scope="module")
def ruled():
    """A place where two may do something, each something else."""
    with site(
        prefix="ddump-ruled",
        rules="""
            [[access]]
            identity = ["cert:CN=responder"]
            allow = ["stream"]
            filter = "not port 22"

            [[access]]
            identity = ["user:alice"]
            allow = ["status"]
        """,
    ) as made:
        yield made


@pytest.mark.parametrize(
    ("kind", "name", "identity", "capture", "status"),
    [
        ("certificate", "responder", "cert:CN=responder", 200, 403),
        # Each is named like the other, and is not the other.
        ("password", NAMESAKE, "user:CN=responder", 403, 403),
        ("password", "alice", "user:alice", 403, 200),
        ("certificate", "alice", "cert:CN=alice", 403, 403),
    ],
)
def test_a_rule_is_for_one_kind_of_identity(
    ruled, kind, name, identity, capture, status
):
    if kind == "certificate":
        known = Shown(pair=ruled.authority.client(name))
        urls = [ruled.url, ruled.certificate_url]
    else:
        known, urls = Shown(user=name, password=ruled.password), [ruled.url]
    for url in urls:
        since = len(ruled.worker.said)
        answer = ruled.curl(*known.curl, f"{url}{CAPTURE}")
        assert answer.status == capture, answer
        line = await_capture(ruled.worker, since)
        assert line["identity"] == identity
        if capture == 200:
            assert line["filter_run"] == "(not port 22) and (udp port 9)"
        else:
            assert identity in answer.problem["detail"]
            assert "stream" not in line
        assert ruled.curl(*known.curl, f"{url}{STATUS}").status == status


def test_health_is_open_and_nothing_else(place):
    for url in (place.url, place.token_url):
        for path, status in (
            ("/api/v1/health", 200),
            ("/api/v1/openapi.json", 200),
            ("/api/v1/status", 401),
            ("/api/v1/segments", 401),
            ("/api/v1/interfaces", 401),
            ("/metrics", 401),
            ("/ring?last=5m", 401),
            ("/nothing", 401),
            ("/api/v1/health/", 401),
            ("/capture%0a/api/v1/health", 401),
        ):
            assert place.curl(f"{url}{path}").status == status, (url, path)


def test_a_stream_ends_when_its_certificate_is_revoked(place, shown):
    leaver, stayer = (place.authority.client(name) for name in ("leaver", "stayer"))
    since = len(place.worker.said)
    urls = (place.url, place.certificate_url)
    with contextlib.ExitStack() as stack:
        going, staying = (
            [stack.enter_context(streaming(place, pair, url)) for url in urls]
            for pair in (leaver, stayer)
        )
        place.revoke(leaver)
        place.reload()
        for each in going:
            assert each.wait(2) != 0  # broken off: curl says that it is not whole
        for _ in going:
            line = await_capture(place.worker, since)
            since = 1 + next(
                number
                for number, each in enumerate(place.worker.said)
                if number >= since and json.loads(each) == line
            )
            assert line["identity"] == "cert:CN=leaver"
            assert "revoked" in line["ended"]
        assert all(each.poll() is None for each in staying)
        for url in urls:
            gone = place.curl(*certificate(leaver), f"{url}{STATUS}")
            assert gone.status in {0, 403}
            assert "revoked" in f"{gone}"
            assert place.curl(*certificate(stayer), f"{url}{STATUS}").status == 200


@contextlib.contextmanager
def streaming(place, pair, url):
    """Have curl stream something that does not come, until this is left."""
    url = f"{url}/capture?filter=udp%20port%209"
    command = place.curl_command("-sN", *certificate(pair), url)
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as curl:
        assert len(curl.stdout.read(24)) == 24
        yield curl


def asked(place, context, port, session=None):
    """Ask for what is not there; return the status, 0 when TLS fails, and the session."""
    try:
        with place.connect(context, port=port, session=session) as client:
            client.sendall(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return int(client.recv(4096)[9:12]), client.session
    except (ssl.SSLError, ConnectionResetError):
        return 0, None


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_who_is_revoked_resumes_no_session(place, version):
    pair = place.authority.client("resumer")
    context = place.context(pair)
    context.minimum_version = context.maximum_version = version
    ports = (PORT, CERTIFICATE_PORT)
    sessions = {}
    for port in ports:
        status, sessions[port] = asked(place, context, port)
        assert status == 404
    place.revoke(pair)
    place.reload()
    for port in ports:
        assert asked(place, context, port, sessions[port])[0] in {0, 403}
        assert asked(place, context, port)[0] in {0, 403}
