from __future__ import annotations

from pathlib import Path

import pytest

from ddump_common.api import Link
from ddump_common.errors import UsageError
from ddump_common.pcap import Precision
from ddump_common.units import SECONDS
from ddump_merger.credentials import Keyring
from ddump_merger.target import (
    FileTarget,
    HttpTarget,
    QueryOptions,
    parse_target,
    read_targets_file,
    redacted,
    unique_names,
)


@pytest.mark.parametrize(
    ("text", "name", "url"),
    [
        ("http://web1", "web1", "http://web1:8475/capture"),
        ("https://web1", "web1", "https://web1:8475/capture"),
        ("HTTP://Web1", "Web1", "http://Web1:8475/capture"),
        ("http://web1:", "web1", "http://web1:8475/capture"),
        ("http://web1:80", "web1", "http://web1:80/capture"),
        ("http://web1:65535/x", "web1", "http://web1:65535/x"),
        ("http://web1/", "web1", "http://web1:8475/capture"),
        ("http://proxy/hosts/web1/", "proxy", "http://proxy:8475/hosts/web1/capture"),
        ("http://web1/a b.pcap", "web1", "http://web1:8475/a%20b.pcap"),
        ("http://web1/a%20b.pcap", "web1", "http://web1:8475/a%20b.pcap"),
        ("http://web1/a#b", "web1", "http://web1:8475/a%23b"),
        ("http://[::1]", "::1", "http://[::1]:8475/capture"),
        ("http://[::1]:80/x", "::1", "http://[::1]:80/x"),
        ("http://[fe80::1%25eth0]", "fe80::1%eth0", "http://[fe80::1%eth0]:8475/capture"),
        ("http://10.0.0.1", "10.0.0.1", "http://10.0.0.1:8475/capture"),
        ("http://my_host.", "my_host.", "http://my_host.:8475/capture"),
        ("http://bücher.example", "xn--bcher-kva.example",
         "http://xn--bcher-kva.example:8475/capture"),
        ("a=http://web1", "a", "http://web1:8475/capture"),
        (" front end =https://web1", "front end", "https://web1:8475/capture"),
        ("http://web1?filter=icmp and host 127.0.0.1", "web1",
         "http://web1:8475/capture?filter=icmp%20and%20host%20127.0.0.1"),
        ("http://web1/capture?filter=icmp+and%20tcp", "web1",
         "http://web1:8475/capture?filter=icmp%20and%20tcp"),
        ("a=http://web1?interface=eth0&interface=eth1&snaplen=96&packets=5", "a",
         "http://web1:8475/capture?interface=eth0&interface=eth1&snaplen=96&packets=5"),
        ("http://web1?filter=tcp[13] %26 2 != 0", "web1",
         "http://web1:8475/capture?filter=tcp%5B13%5D%20%26%202%20%21%3D%200"),
    ],
)  # fmt: skip
def test_urls_are_completed(text, name, url):
    target = parse_target(text)
    assert isinstance(target, HttpTarget)
    assert (target.name, target.url) == (name, url)


@pytest.mark.parametrize(
    "text",
    ["ftp://u:s3kr1t@h", "htp://u:s3kr1t@h", "http:/u:s3kr1t@h", "a=b=http://u:s3kr1t@h",
     "a://b=http://u:s3kr1t@h"],
)  # fmt: skip
def test_a_url_that_went_wrong_is_no_file_and_its_password_is_not_shown(text):
    with pytest.raises(UsageError, match="not a URL of a worker") as caught:
        parse_target(text)
    assert "s3kr1t" not in str(caught.value)


def test_a_list_of_targets_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "targets"
    path.write_bytes("# ours\nweb=http://web1\n".encode("utf-8-sig"))
    assert read_targets_file(path) == [(f"{path}:2", "web=http://web1")]


def test_a_list_of_targets_has_an_end():
    with pytest.raises(UsageError, match="/dev/zero is too long"):
        read_targets_file(Path("/dev/zero"))


def test_a_filter_cannot_reach_out_of_the_one_in_the_url():
    with pytest.raises(UsageError, match="do not match"):
        parse_target("http://h?filter=c", QueryOptions(filter="a) or (b"))


@pytest.mark.parametrize(
    "text",
    ["a.pcap", "./a=b.pcap", "x=y", "-", "a=httpd.pcap", "x/http://y", "./a://b"],
)  # fmt: skip
def test_every_other_word_is_a_file(text):
    target = parse_target(text)
    assert target == FileTarget(name=text, path=text)
    assert target.is_standard_input == (text == "-")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "a target is a URL"),
        ("a\0b", "a target is a URL"),
        ("http://", "no host"),
        ("http:///capture", "no host"),
        ("=http://web1", "an empty label"),
        (" =http://web1", "an empty label"),
        ("http://web1:0", "port 0 is out of range, it goes from 1 to 65535"),
        ("http://web1:65536", "port 65536 is out of range"),
        ("http://web1:http", "not HOST or HOST:PORT"),
        ("http://::1", "an IPv6 address stands in brackets"),
        ("http://[::1", "not HOST or HOST:PORT"),
        ("http://[web1]", "not an IPv6 address in the brackets"),
        ("http://web 1", "not a host's name"),
        ("http://web1\n", "not a host's name"),
        ("http://" + "é" * 70, "not a host's name"),
        ("http://web1?x=1", "x: unknown parameter"),
        ("http://web1?filter=a&filter=b", "filter: given more than once"),
        ("http://web1?filter=a & b=c", "an & inside a filter is written %26"),
        ("http://web1?snaplen=0", "snaplen: 0 is out of range"),
        ("http://web1?filter=%ff", "not valid UTF-8"),
        ("http://web1?link=ethernet", "link: 'ethernet' is not one of sll, sll2"),
        ("http://web1?filter=" + "x" * 4097, "filter: has 4097 bytes"),
    ],
)
def test_what_is_no_target_is_a_usage_error(text, complaint):
    with pytest.raises(UsageError) as caught:
        parse_target(text)
    assert complaint in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "http://user:secret@web1:x",
        "http://user:secret@web1?x=1",
        "http://user:secret@",
        "http://user:se/cret@web1",
        "http://user:1/cret@web1",
        "http://user:1?secret@web1",
        "http://user:1?secret=1&cret@web1",
        "a=http://user:secret@web1?filter=%ff",
        "http://us%0aer:secret@[web1]",
    ],
)
def test_errors_never_hold_what_may_be_a_password(text):
    with pytest.raises(UsageError) as caught:
        parse_target(text, keyring=Keyring())
    assert "cret" not in str(caught.value)
    assert "://***@" in str(caught.value)


def test_credentials_leave_the_url_and_are_decoded():
    target = parse_target("http://al%40ice:p%2Fw%3A%3F@web1", keyring=Keyring())
    assert target.url == "http://web1:8475/capture"
    assert target.authorization.header == "Basic YWxAaWNlOnAvdzo/"  # al@ice:p/w:?
    assert "YWxA" not in repr(target)
    assert "p/w" not in repr(target)
    assert str(target) == repr(target)


@pytest.mark.parametrize(
    ("text", "exposed"),
    [
        ("http://a:b@web1", True),
        ("http://a:b@10.0.0.1", True),
        ("http://a:b@localhost.example.org", True),
        ("http://a:b@[fe80::1%25eth0]", True),
        ("http://a:b@LOCALHOST.", False),
        ("http://a:b@web1.localhost", False),
        ("http://a:b@127.0.0.2", False),
        ("http://a:b@[::1]", False),
        ("http://web1", False),
        ("https://a:b@web1", False),
    ],
)
def test_whose_credentials_others_can_read(text, exposed):
    assert parse_target(text, keyring=Keyring()).exposed is exposed


def test_the_last_at_sign_ends_the_credentials():
    target = parse_target("http://alice:a@b@web1", keyring=Keyring())
    assert target.host == "web1"


def test_options_are_added_to_every_query():
    options = QueryOptions(
        filter="tcp",
        interfaces=("eth0", "eth1"),
        snaplen=96,
        duration_ns=90 * SECONDS,
        link=Link.SLL2,
        precision=Precision.NANO,
    )
    target = parse_target("http://web1?filter=port 80 or port 81&packets=5", options)
    assert target.query.filter == "(port 80 or port 81) and (tcp)"
    assert dict(target.query.pairs()) == {
        "filter": "(port 80 or port 81) and (tcp)",
        "interface": "eth1",
        "snaplen": "96",
        "packets": "5",
        "duration": "1m30s",
        "link": "sll2",
        "precision": "nano",
    }
    assert target.query.interfaces == ("eth0", "eth1")


@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("snaplen=96", QueryOptions(snaplen=100)),
        ("interface=eth0", QueryOptions(interfaces=("eth1",))),
        ("duration=5", QueryOptions(duration_ns=SECONDS)),
        ("link=sll", QueryOptions(link=Link.SLL2)),
        ("precision=micro", QueryOptions(precision=Precision.NANO)),
    ],
)
def test_an_option_that_the_url_has_too_is_an_error_that_names_both(query, options):
    name = query.partition("=")[0]
    with pytest.raises(UsageError, match=f"--{name} is given, and {name}= in the URL"):
        parse_target(f"http://web1?{query}", options)


def test_a_joined_filter_that_is_too_long_is_an_error():
    with pytest.raises(UsageError, match="filter: has"):
        parse_target(
            f"http://web1?filter={'x' * 3000}", QueryOptions(filter="y" * 3000)
        )


@pytest.mark.parametrize(
    "options",
    [
        QueryOptions(filter="tcp"),
        QueryOptions(interfaces=("a",)),
        QueryOptions(snaplen=1),
    ],
)
@pytest.mark.parametrize("text", ["a.pcap", "-"])
def test_a_filter_for_a_file_is_a_usage_error(text, options):
    with pytest.raises(UsageError, match="not for files"):
        parse_target(text, options)


def test_a_blank_filter_is_none():
    assert parse_target("a.pcap", QueryOptions(filter=" ")).path == "a.pcap"
    assert (
        parse_target("http://web1?filter= ", QueryOptions(filter="")).query.filter == ""
    )


def test_other_resources_are_beside_the_capture():
    def status(text):
        return parse_target(text).api_url("/api/v1/status")

    assert status("http://web1") == "http://web1:8475/api/v1/status"
    assert status("http://web1/capture") == "http://web1:8475/api/v1/status"
    assert status("http://p:80/hosts/web1/") == "http://p:80/hosts/web1/api/v1/status"


def test_names_become_unique():
    words = ["http://a", "http://a:1", "b=http://a", "a#2=http://c", "http://a:2", "b"]
    targets = unique_names(parse_target(word) for word in words)
    assert [t.name for t in targets] == ["a", "a#2", "b", "a#2#2", "a#3", "b#2"]
    assert targets[-1].path == "b"


def test_a_file_of_targets(tmp_path):
    path = tmp_path / "prod.targets"
    path.write_text(
        "# all of them\n\n  web1=http://10.0.0.1  # the first\r\nhttp://a#b\n\t# none\nx.pcap"
    )
    assert read_targets_file(path) == [
        (f"{path}:3", "web1=http://10.0.0.1"),
        (f"{path}:4", "http://a#b"),
        (f"{path}:6", "x.pcap"),
    ]


def test_a_file_of_targets_with_a_password_is_for_its_owner_alone(tmp_path):
    path = tmp_path / "prod.targets"
    path.write_text("http://a:b\nweb1=http://alice@h#:@\n")
    path.chmod(0o644)
    assert len(read_targets_file(path)) == 2
    path.write_text("http://a\nweb1=http://alice:s3cret@h\n")
    with pytest.raises(
        UsageError, match="has a secret, and can be read by others"
    ) as caught:
        read_targets_file(path)
    assert "s3cret" not in str(caught.value)
    path.chmod(0o600)
    assert len(read_targets_file(path)) == 2


@pytest.mark.parametrize(
    "text", ["alice:s3cret@web1", "//alice:s3cret@web1", r"https:\\alice:s3cret@web1"]
)
def test_a_login_without_its_scheme_is_no_file_s_name(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no such file") as caught:
        parse_target(text)
    assert "s3cret" not in str(caught.value)
    assert "***@web1" in str(caught.value)


def test_a_file_s_name_may_look_like_a_login(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "14:03@web1.pcap").touch()
    assert parse_target("14:03@web1.pcap").path == "14:03@web1.pcap"


def test_a_file_of_targets_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_targets_file(tmp_path / "none")
    path = tmp_path / "binary"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not text in UTF-8"):
        read_targets_file(path)


def test_redacted_is_printable():
    assert redacted("a=http://u:p@q@h/\x1b[31m") == "a=http://***@h/\\x1b[31m"


# --- Windows ---

NOW = 1_700_661_780 * SECONDS  # 2023-11-22T14:03:00Z
SINCE = "since=2023-11-22T13%3A58%3A00Z"
UNTIL = "until=2023-11-22T14%3A03%3A00Z"


@pytest.mark.parametrize(
    ("text", "window", "url", "follows"),
    [
        ("http://w", [("last", "5m")], f"http://w:8475/ring?{SINCE}&{UNTIL}", False),
        ("http://w/", [("last", "5m")], f"http://w:8475/ring?{SINCE}&{UNTIL}", False),
        ("http://w/p/", [("since", "-5m")], f"http://w:8475/p/ring?{SINCE}&{UNTIL}", False),
        ("http://w/ring", [("until", "now")], f"http://w:8475/ring?{UNTIL}", False),
        ("http://w/x", [("until", "now")], f"http://w:8475/x?{UNTIL}", False),
        ("http://w?last=5m", [], f"http://w:8475/ring?{SINCE}&{UNTIL}", False),
        ("http://w?since=1700661480&until=1700661780", [],
         f"http://w:8475/ring?{SINCE}&{UNTIL}", False),
        ("http://w?since=2023-11-22T14:58:00+01:00", [],
         f"http://w:8475/ring?{SINCE}&{UNTIL}", False),
        ("http://w/p/?last=5m&follow=1", [], f"http://w:8475/p/ring?{SINCE}&follow=1", True),
        ("http://w?last=5m", [("follow", "1")], f"http://w:8475/ring?{SINCE}&follow=1", True),
        ("http://w?since=-5m", [("until", "now")], f"http://w:8475/ring?{SINCE}&{UNTIL}", False),
        ("http://w/ring", [], "http://w:8475/ring", False),
        ("http://w/p/ring?filter=icmp", [], "http://w:8475/p/ring?filter=icmp", False),
    ],
)  # fmt: skip
def test_windows_are_of_the_ring_and_absolute(text, window, url, follows):
    target = parse_target(text, QueryOptions(window=tuple(window), now_ns=NOW))
    assert target.url == url
    assert (target.live, target.follows) == (False, follows)


def test_what_names_no_window_is_live():
    for text in ("http://w", "http://w/capture", "http://w/p/", "http://w/x"):
        target = parse_target(text, QueryOptions(now_ns=NOW))
        assert (target.live, target.follows) == (True, False)


@pytest.mark.usefixtures("berlin")
def test_a_time_in_a_url_is_local_to_who_writes_it():
    target = parse_target(
        "http://w?since=14:58&until=2023-11-22 15:03", QueryOptions(now_ns=NOW)
    )
    assert target.url == f"http://w:8475/ring?{SINCE}&{UNTIL}"


def test_the_filter_of_a_window_is_joined_as_any():
    options = QueryOptions(window=(("last", "5m"),), now_ns=NOW, filter="tcp")
    target = parse_target("http://w?filter=icmp or udp&snaplen=96", options)
    assert target.query.filter == "(icmp or udp) and (tcp)"
    assert (target.query.snaplen, target.query.until_ns) == (96, NOW)


@pytest.mark.parametrize(
    ("text", "window", "complaint"),
    [
        ("http://w/capture", [("last", "5m")], "/capture has no past (for a window leave"),
        ("http://w/p/capture?since=-5m", [], "or write /ring"),
        ("http://w?last=5m", [("last", "1m")], "--last is given, and last= in the URL"),
        ("http://w?since=-5m", [("last", "1m")], "last: since is given as well"),
        ("http://w?last=5m&until=-1m", [], "last: ends now (give since with until)"),
        ("http://w?since=soon", [], "since: 'soon' is not a time (for example"),
        ("http://w?since=-1m&since=-1m", [], "since: given more than once"),
        ("http://w?follow=1&until=-1m", [], "until: is past"),
        ("http://w/x?sinze=-1m", [], "sinze: unknown parameter"),
        ("http://w/ring?sinze=-1m", [], "there are since, until, last, follow"),
        ("a.pcap", [("last", "5m")], "are for workers, not for files (editcap"),
        ("-", [("follow", "1")], "--last, --since, --until and --follow are for workers"),
    ],
)  # fmt: skip
def test_windows_that_make_no_sense(text, window, complaint):
    with pytest.raises(UsageError) as caught:
        parse_target(text, QueryOptions(window=tuple(window), now_ns=NOW))
    assert complaint in str(caught.value)
