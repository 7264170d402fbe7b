"""Rules of access: whose they are, what they allow, and the most that may be had."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from ddump_common.api import CaptureQuery, RingQuery
from ddump_common.errors import UsageError
from ddump_common.note import EndReason
from ddump_common.units import SECONDS
from ddump_worker.access import Access, Grant, Order, Permission, Rule
from ddump_worker.config import read_file, read_rules
from ddump_worker.denial import ForbiddenError, UnauthorizedError
from ddump_worker.identity import ANONYMOUS, Identity, IdentityKind
from support.orders import client, order

ALICE = Identity(kind=IdentityKind.USER, name="alice")
CERT = Identity(kind=IdentityKind.CERT, name="CN=alice,O=Team")
TOKEN = Identity(kind=IdentityKind.TOKEN, name="backup")


def rule(*identities: str, **grant) -> Rule:
    return Rule(identities=identities, grant=Grant(**grant))


@pytest.mark.parametrize(
    ("pattern", "whom"),
    [
        ("user:alice", {ALICE}),
        ("user:*", {ALICE}),
        ("cert:CN=alice,O=Team", {CERT}),
        ("cert:*", {CERT}),
        # A user who is named like a certificate's subject is not that certificate.
        ("user:CN=alice,O=Team", set()),
        ("cert:CN=alice", set()),
        ("user:ALICE", set()),
        ("token:backup", {TOKEN}),
        ("token:*", {TOKEN}),
        ("anonymous", {ANONYMOUS}),
    ],
)
def test_a_rule_is_for_whom_it_names(pattern, whom):
    everybody = {ALICE, CERT, TOKEN, ANONYMOUS}
    assert {each for each in everybody if rule(pattern).fits(each)} == whom


def test_a_name_cannot_be_made_to_look_like_another_kind():
    user = Identity(kind=IdentityKind.USER, name="x cert:CN=alice,O=Team")
    assert not rule("cert:CN=alice,O=Team", "cert:*").fits(user)


@pytest.mark.parametrize(
    "pattern",
    ["", "*", "alice", "user", "user:", ":alice", "users:alice", "anonymous:*", "cert"],
)
def test_a_pattern_that_is_none(pattern):
    with pytest.raises(UsageError, match="is none"):
        rule(pattern)


@pytest.mark.parametrize(
    "subject",
    [
        "alice",
        "CN = alice",
        "CN=alice, O=Team",
        "CN=alice ,O=Team",
        "CN= alice",
        "cn=alice",
        "/O=Team/CN=alice",
        "emailAddress=a@example.org,CN=alice",
        "CN=alice,",
        'CN="alice"',
        "CN=alice\\2cTeam",
    ],
)
def test_a_subject_that_no_certificate_is_known_by(subject):
    with pytest.raises(UsageError, match="no subject as RFC 4514 writes it"):
        rule(f"cert:{subject}")


@given(
    st.lists(
        st.lists(
            st.tuples(
                st.sampled_from(
                    [
                        NameOID.COMMON_NAME,
                        NameOID.ORGANIZATION_NAME,
                        NameOID.EMAIL_ADDRESS,
                        NameOID.DOMAIN_COMPONENT,
                        NameOID.USER_ID,
                        NameOID.STREET_ADDRESS,
                    ]
                ),
                st.text(min_size=1, max_size=8)
                | st.text(' "#+,;<=>\\\0\nä', min_size=1, max_size=8),
            ),
            min_size=1,
            max_size=2,
            unique=True,
        ),
        min_size=1,
        max_size=3,
    )
)
def test_whoever_has_a_subject_can_have_a_rule(parts):
    name = x509.Name(
        x509.RelativeDistinguishedName(x509.NameAttribute(*each) for each in part)
        for part in parts
    )
    identity = Identity(kind=IdentityKind.CERT, name=name.rfc4514_string())
    assert rule(str(identity)).fits(identity)


def test_a_rule_for_nobody():
    with pytest.raises(UsageError, match="names nobody"):
        rule()


class TestAccess:
    def test_without_rules_everybody_may_everything(self):
        for each in (ALICE, ANONYMOUS):
            grant = Access().grant(each)
            assert grant == Grant()
            for permission in Permission:
                grant.require(permission, each)

    def test_the_first_rule_that_fits_holds(self):
        access = Access(
            [
                rule("user:alice", filter="udp"),
                rule("user:*", "user:alice", filter="tcp"),
            ]
        )
        assert access.grant(ALICE).filter == "udp"
        bob = Identity(kind=IdentityKind.USER, name="bob")
        assert access.grant(bob).filter == "tcp"

    def test_who_is_in_no_rule_may_nothing(self):
        access = Access([rule("user:bob")])
        with pytest.raises(ForbiddenError, match=r"no rule .* is for user:alice"):
            access.grant(ALICE)

    def test_who_did_not_say_who_it_is_may_say_it(self):
        with pytest.raises(UnauthorizedError) as refusal:
            Access([rule("user:bob")]).grant(ANONYMOUS)
        assert "certificate or a token" in refusal.value.hint

    def test_what_is_not_allowed_is_named_with_what_is(self):
        grant = Grant(allow=frozenset({Permission.WINDOW, Permission.STATUS}))
        grant.require(Permission.WINDOW, ALICE)
        with pytest.raises(ForbiddenError, match=r"user:alice .* stream") as refusal:
            grant.require(Permission.STREAM, ALICE)
        assert refusal.value.hint == "it has window, status"
        with pytest.raises(ForbiddenError) as refusal:
            Grant(allow=frozenset()).require(Permission.STREAM, ALICE)
        assert refusal.value.hint == "it has none"

    def test_what_was_granted_holds_as_long_as_it_is_the_same(self):
        access = Access([rule("user:alice", filter="udp")])
        grant = access.grant(ALICE)
        assert access.holds(ALICE, grant)
        # Another rule for others, and this one for one more.
        access.replace([rule("token:*"), rule("user:bob", "user:alice", filter="udp")])
        assert access.holds(ALICE, grant)
        for rules in (
            [rule("user:alice", filter="udp", max_packets=9)],
            [rule("user:alice", filter="tcp")],
            [rule("user:alice", filter="udp", allow=frozenset({Permission.STATUS}))],
            [rule("user:bob")],
        ):
            access.replace(rules)
            assert not access.holds(ALICE, grant)

    def test_rules_do_not_go_all_at_once(self):
        rules = [rule("user:alice")]
        Access().check([])
        Access().check(rules)
        Access(rules).check([rule("user:bob")])
        with pytest.raises(UsageError, match="rules of access are gone"):
            Access(rules).check([])


class TestOrder:
    def test_who_asks_for_nothing_gets_the_caps(self):
        made = order(
            RingQuery(filter="udp", since_ns=5),
            max_duration_ns=7,
            max_bytes=8,
            max_packets=9,
        )
        assert made.query == RingQuery(
            filter="udp", since_ns=5, duration_ns=7, bytes=8, packets=9
        )
        for reason in (EndReason.DURATION, EndReason.BYTES, EndReason.PACKETS):
            assert made.end(reason) is EndReason.CAP
        for reason in (EndReason.IDLE, EndReason.COMPLETE, EndReason.SHUTDOWN):
            assert made.end(reason) is reason

    def test_who_asks_for_as_much_as_may_be_or_less_ends_as_asked(self):
        asked = CaptureQuery(duration_ns=7, bytes=3, packets=9)
        made = order(asked, max_duration_ns=7, max_bytes=8)
        assert made.query == asked
        for reason in EndReason:
            assert made.end(reason) is reason

    @pytest.mark.parametrize(
        ("asked", "grant", "words"),
        [
            (
                {"duration_ns": 61 * SECONDS},
                {"max_duration_ns": 60 * SECONDS},
                r"duration: 1m1s is more than anonymous .* max-duration = 1m$",
            ),
            ({"bytes": 11}, {"max_bytes": 10}, r"bytes: 11 .* max-bytes = 10$"),
            ({"packets": 2}, {"max_packets": 1}, r"packets: 2 .* max-packets = 1$"),
        ],
    )
    def test_who_asks_for_more_is_told_of_the_cap(self, asked, grant, words):
        with pytest.raises(ForbiddenError, match=words):
            order(CaptureQuery(**asked), **grant)

    @pytest.mark.parametrize(
        ("rule_s", "asked", "run"),
        [
            ("", "", ""),
            ("", "udp or tcp", "udp or tcp"),
            ("not port 22", " ", "not port 22"),
            ("not port 22", "udp or tcp", "(not port 22) and (udp or tcp)"),
            # What is run is compiled apart; this is for people.
            ("not port 22", "a) or (b", "(not port 22) and (a) or (b)"),
        ],
    )
    def test_the_filter_as_run(self, rule_s, asked, run):
        assert order(CaptureQuery(filter=asked), filter=rule_s).filter == run

    def test_how_far_back_the_ring_goes(self):
        assert order().oldest_ns(100) == 0
        assert order(max_age_ns=30).oldest_ns(100) == 70
        assert order(max_age_ns=300).oldest_ns(100) == 0

    def test_it_keeps_who_asked_for_what(self):
        who = client(ALICE)
        made = Order.of(who, Grant(max_packets=3), CaptureQuery())
        assert (made.client, made.grant) == (who, Grant(max_packets=3))


class TestFile:
    def read(self, tmp_path, text: str) -> tuple[Rule, ...]:
        path = tmp_path / "worker.toml"
        path.write_text(text)
        read_file(path)
        return read_rules(path)

    def test_tables_are_rules_in_their_order(self, tmp_path):
        assert self.read(
            tmp_path,
            """
            max-streams = 3
            [[access]]
            identity = ["cert:CN=alice,O=Team", "user:alice"]
            allow = ["stream", "window", "status", "trigger", "admin"]
            [[access]]
            identity = ["token:*", "anonymous"]
            allow = ["window"]
            filter = "not port 22"
            max-duration = "10m"
            max-bytes = "1GB"
            max-packets = 1000
            max-streams = 2
            max-age = 90
            """,
        ) == (
            rule("cert:CN=alice,O=Team", "user:alice"),
            rule(
                "token:*",
                "anonymous",
                allow=frozenset({Permission.WINDOW}),
                filter="not port 22",
                max_duration_ns=600 * SECONDS,
                max_bytes=10**9,
                max_packets=1000,
                max_streams=2,
                max_age_ns=90 * SECONDS,
            ),
        )

    def test_without_tables_there_are_no_rules(self, tmp_path):
        assert self.read(tmp_path, "max-streams = 3") == ()

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ('identity = ["alice"]', "access table 2: identity: 'alice' is none"),
            ("identity = []", "access table 2: identity: names nobody"),
            ('identity = "cert:*"', r"access\[1\]\.identity"),
            ("allow = []", ""),
            ('allow = ["everything"]', "'everything'"),
            ('filter = "a\\u0000b"', "access table 2: filter: holds a NUL"),
            (f'filter = "{"x" * 4097}"', "access table 2: filter: has 4097 bytes"),
            ("max-duration = 0", "access table 2: max-duration: 0 is not more than 0"),
            ('max-duration = "soon"', "access table 2: max-duration: 'soon' is not"),
            ('max-bytes = "lots"', "access table 2: max-bytes: 'lots' is not"),
            ("max-packets = -1", "access table 2: max-packets: -1 is not more"),
            ("max-streams = 0", "access table 2: max-streams: 0 is not more"),
            ("max-streems = 1", "max-streems"),
            ("max-age = true", "max-age"),
        ],
    )
    def test_what_cannot_be_is_named(self, tmp_path, line, words):
        fields = {"identity": 'identity = ["cert:*"]', "allow": 'allow = ["status"]'}
        fields[line.partition(" ")[0]] = line
        text = (
            '[[access]]\nidentity = ["user:*"]\nallow = []\n[[access]]\n'
            + "\n".join(fields.values())
        )
        if not words:
            assert self.read(tmp_path, text)[1].grant.allow == frozenset()
            return
        with pytest.raises(UsageError, match=words) as refusal:
            self.read(tmp_path, text)
        assert "worker.toml" in str(refusal.value)
