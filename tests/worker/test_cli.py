"""The command line: options, environment and file, in this order."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from ddump_common.api import Link
from ddump_common.errors import CaptureError, PrivilegeError, UsageError
from ddump_worker import cli
from ddump_worker.share import Share
from support.workers import run, worker


@pytest.fixture
def invoke(monkeypatch):
    """Return a function that runs the command line as far as it asks to serve."""
    served = []

    async def serve(config, *, announce):
        announce("somewhere")
        served.append(config)

    monkeypatch.setattr(cli, "serve", serve)

    def invoke(*arguments, env=None, failure=None):
        if failure is not None:

            async def fail(*_, **__):
                raise failure

            monkeypatch.setattr(cli, "serve", fail)
        result = CliRunner().invoke(
            cli.command, ["--allow-anonymous", *arguments], env=env
        )
        result.config = served[-1] if served else None
        return result

    return invoke


def test_the_defaults(invoke):
    result = invoke()
    assert result.exit_code == 0, result.output
    assert "listening on somewhere" in result.stderr
    assert [str(each) for each in result.config.listen] == ["http://127.0.0.1:8475"]
    assert result.config.exclude == ()


def test_the_version_names_libpcap_s_as_well(invoke):
    ours, theirs = invoke("--version").stdout.splitlines()
    assert ours.startswith("ddump-worker, version ")
    assert theirs.startswith("libpcap version 1.")


def test_all_options(invoke):
    config = invoke(
        "--listen", "0.0.0.0:1", "--listen", "unix:/x", "--listen-group", "daemon",
        "--allow-plaintext", "--exclude", "tcp port 1 or arp", "--exclude", "icmp",
        "--promiscuous", "eth0", "--promiscuous", "eth1", "--buffer-size", "4MiB",
        "--capture-memory", "1GB", "--max-streams", "3", "--max-connections", "4",
    ).config  # fmt: skip
    assert [str(each) for each in config.listen] == ["http://0.0.0.0:1", "unix:/x"]
    assert config.listen_group == "daemon"
    assert config.allow_plaintext
    assert config.exclude == ("tcp port 1 or arp", "icmp")
    assert config.promiscuous == ("eth0", "eth1")
    assert (config.buffer_size, config.capture_memory) == (4 << 20, 10**9)
    assert (config.max_streams, config.max_connections) == (3, 4)


def test_all_options_of_the_ring(invoke, tmp_path):
    config = invoke(
        "--ring-dir", str(tmp_path), "--ring-size", "10GB", "--segment-size", "100MB",
        "--ring-reserve", "2GB,7%", "--ring-pinned", "300MB", "--ring-link", "sll2",
        "--ring-interface", "eth0", "--ring-interface", "eth1", "--ring-filter", "udp",
        "--ring-snaplen", "128", "--ring-buffer-size", "8MiB", "--max-windows", "5",
    ).config  # fmt: skip
    assert config.ring_dir == tmp_path
    assert (config.ring_size, config.segment_size) == (10**10, 10**8)
    assert (str(config.ring_reserve), str(config.ring_pinned)) == ("2GB,7%", "300MB")
    assert (config.ring_link, config.ring_filter) == (Link.SLL2, "udp")
    assert config.ring_interface == ("eth0", "eth1")
    assert (config.ring_snaplen, config.ring_buffer_size) == (128, 8 << 20)
    assert config.max_windows == 5


def test_the_ring_by_the_file_and_the_environment(invoke, tmp_path):
    file = tmp_path / "worker.toml"
    file.write_text(
        f'ring-dir = "{tmp_path}"\nring-size = 5000000000\nring-reserve = "3%"\n'
        'ring-interface = ["a", "b"]\nring-link = "sll2"\nring-snaplen = 99\n'
    )
    config = invoke(
        "--config", str(file), env={"DDUMP_WORKER_RING_SIZE": "6GB"}
    ).config  # fmt: skip
    assert (config.ring_dir, config.ring_size) == (tmp_path, 6 * 10**9)
    assert config.ring_reserve == Share(percent=3)
    assert (config.ring_interface, config.ring_link) == (("a", "b"), Link.SLL2)
    assert config.ring_snaplen == 99


RING_OPTIONS = {
    "--ring-size": "1GB",
    "--segment-size": "1MB",
    "--ring-reserve": "1%",
    "--ring-pinned": "1%",
    "--ring-link": "sll",
    "--ring-interface": "lo",
    "--ring-filter": "udp",
    "--ring-snaplen": "99",
    "--ring-buffer-size": "4MiB",
    "--max-windows": "3",
}


@pytest.mark.parametrize(("option", "value"), RING_OPTIONS.items())
def test_without_a_directory_there_is_no_ring_to_speak_of(invoke, option, value):
    words = f"{option}: there is no ring without --ring-dir"
    result = invoke(option, value)
    assert (result.exit_code, result.config) == (2, None)
    assert words in result.stderr
    name = "DDUMP_WORKER_" + option.removeprefix("--").replace("-", "_").upper()
    result = invoke(env={name: value})
    assert (result.exit_code, result.config) == (2, None)
    assert words in result.stderr


def test_each_option_of_the_ring_is_tested():
    names = {option for each in cli.command.params for option in each.opts}
    assert {
        name for name in names if "ring" in name or "segm" in name or "wind" in name
    } == {
        *RING_OPTIONS,
        "--ring-dir",
    }


def test_the_environment(invoke):
    config = invoke(
        env={
            "DDUMP_WORKER_LISTEN": "unix:/x 127.0.0.1:5",
            "DDUMP_WORKER_EXCLUDE": "tcp port 443;udp port 53 or arp",
            "DDUMP_WORKER_PROMISCUOUS": "eth0 eth1",
            "DDUMP_WORKER_BUFFER_SIZE": "2MiB",
            "DDUMP_WORKER_MAX_STREAMS": "2",
        }
    ).config
    assert [str(each) for each in config.listen] == ["unix:/x", "http://127.0.0.1:5"]
    assert config.exclude == ("tcp port 443", "udp port 53 or arp")
    assert config.promiscuous == ("eth0", "eth1")
    assert (config.buffer_size, config.max_streams) == (2 << 20, 2)


def test_options_come_before_the_environment_and_that_before_the_file(invoke, tmp_path):
    file = tmp_path / "worker.toml"
    file.write_text(
        'max-streams = 1\nmax-connections = 1\nbuffer-size = "1MiB"\n'
        'exclude = ["udp port 1", "arp"]\nlisten = ["unix:/file"]\n'
    )
    config = invoke(
        "--config", str(file), "--max-streams", "3",
        env={"DDUMP_WORKER_MAX_STREAMS": "2", "DDUMP_WORKER_MAX_CONNECTIONS": "2"},
    ).config  # fmt: skip
    assert (config.max_streams, config.max_connections) == (3, 2)
    assert config.buffer_size == 1 << 20
    assert config.exclude == ("udp port 1", "arp")
    assert [str(each) for each in config.listen] == ["unix:/file"]


def test_the_file_may_be_named_by_the_environment(invoke, tmp_path):
    file = tmp_path / "worker.toml"
    file.write_text("max-streams = 5\nbuffer-size = 2097152")
    config = invoke(env={"DDUMP_WORKER_CONFIG": str(file)}).config
    assert (config.max_streams, config.buffer_size) == (5, 2 << 20)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen", "nonsense"], "'nonsense' is not an address"),
        (["--buffer-size", "huge"], "'huge' is not a size"),
        (["--buffer-size", "1kB"], "a buffer of 1kB"),
        (["--max-streams", "0"], "0 is not in the range"),
        (["--listen", "10.0.0.1:1"], "--allow-plaintext"),
        (["--exclude", ""], "empty --exclude"),
        (["--ring-dir", ""], "'' is not a directory"),
        (["--ring-dir", "/x", "--ring-size", "100MB"], "less than 2 segments"),
        (["--ring-dir", "/x", "--ring-pinned", "some"], "for example 1GB, 5%"),
        (["--ring-dir", "/x", "--ring-link", "ethernet"], "not one of sll, sll2"),
        (["--ring-dir", "/x", "--ring-snaplen", "0"], "0 is not in the range"),
        (["--listen", ""], "'' is not an address"),
        (["--nosuch"], "No such option"),
        (["argument"], "unexpected extra argument"),
    ],
)
def test_what_cannot_be_is_refused_with_2(invoke, arguments, words):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.config is None


def test_an_unknown_key_in_the_file_is_named(invoke, tmp_path):
    file = tmp_path / "worker.toml"
    file.write_text("max-steams = 5")
    result = invoke("--config", str(file))
    assert result.exit_code == 2
    assert "max-steams" in result.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("listen = []", "listen names no address"),
        ('listen = [""]', "'' is not an address"),
        ('exclude = [""]', "empty --exclude"),
        ('buffer-size = ""', "'' is not a size"),
    ],
)
def test_what_is_empty_in_the_file_is_named(invoke, tmp_path, text, words):
    file = tmp_path / "worker.toml"
    file.write_text(text)
    result = invoke("--config", str(file))
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.config is None


def test_a_file_that_is_not_there_is_named(invoke, tmp_path):
    result = invoke("--config", str(tmp_path / "nosuch.toml"))
    assert result.exit_code == 2
    assert "nosuch.toml" in result.stderr


@pytest.mark.parametrize(
    ("failure", "code", "lines"),
    [
        (UsageError("no", hint="do"), 2, ["Error: no (do)"]),
        (PrivilegeError("cannot"), 1, ["Error: cannot"]),
        (
            ExceptionGroup(
                "both", [CaptureError("a"), ExceptionGroup("", [UsageError("b")])]
            ),
            2,
            ["Error: a", "Error: b"],
        ),
    ],
)
def test_errors_are_told_by_line_and_the_worst_is_the_exit_code(
    invoke, failure, code, lines
):
    result = invoke(failure=failure)
    assert result.exit_code == code
    assert result.stderr.splitlines() == lines


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--buffer-size", "5xb"],
         "--buffer-size: '5xb' is not a size (for example 2GB or 512MiB)"),
        (["--ring-size", "2GB"], "--ring-size: there is no ring without --ring-dir"),
        (["--nonsense"], "No such option '--nonsense'"),
    ],
)  # fmt: skip
def test_usage_errors_are_one_line(invoke, words, said):
    result = invoke(*words)
    assert result.exit_code == 2
    assert result.stderr == f"Error: {said}\n"


def test_an_interrupt_before_it_serves_is_no_traceback(invoke):
    result = invoke(failure=KeyboardInterrupt())
    assert result.exit_code == 130
    assert result.stderr.strip() == ""


def test_help_shows_the_tool_working(invoke):
    result = invoke("--help")
    assert "curl -sN" in result.output
    assert "DDUMP_WORKER_EXCLUDE" in result.output
    assert (
        "Exit status: 0 ended by a signal or checked, 1 failure, 2 what was asked for"
        in result.output
    )


@pytest.mark.process
class TestProcess:
    async def test_the_file_and_the_environment_reach_the_process(self, tmp_path):
        file = tmp_path / "worker.toml"
        file.write_text(f'listen = ["unix:{tmp_path}/x.sock"]\nmax-streams = 0\n')
        async with worker(
            "--config",
            str(file),
            listen=[],
            env={"DDUMP_WORKER_MAX_STREAMS": "2"},
        ):
            assert (tmp_path / "x.sock").exists()

    async def test_loopback_without_the_words_is_refused(self):
        code, said = await run()
        assert code == 2
        assert "--allow-anonymous" in said
        assert "listening" not in said

    async def test_a_bad_key_ends_it(self, tmp_path):
        file = tmp_path / "worker.toml"
        file.write_text("max-steams = 5")
        code, said = await run("--config", str(file), "--allow-anonymous")
        assert code == 2
        assert "max-steams" in said
        assert "Traceback" not in said
