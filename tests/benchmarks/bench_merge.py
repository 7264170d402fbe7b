"""Merge four files of a million packets into one: ddump beside mergecap and tcpslice.

First the files are classic pcap, then the same packets in pcapng, which tcpslice does
not read; the output is classic pcap.

Each round runs all of them, one after the other, into the same file, which is removed
before each run: so each finds the same pages free. The first round only warms up. The
medians of user and system time together, their ratios to the peers, and the greatest
peak memory (never less than this program's own) are printed. The outputs of ddump and
mergecap are compared byte by byte, and capinfos says whether all packets are there in
order of time. The shell's ``cat``, which copies the same bytes without a look at them,
shows what reading and writing alone cost here.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import random
import statistics
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.captures import interface, pcap_header, section
from support.programs import DDUMP

FILES = 4
PER_SECOND = 1000
FIRST_SECOND = 1_700_000_000
GOALS = {"mergecap": 0.25, "tcpslice": 0.3}
GOAL_MIB = 100


def packets_of_a_second(seed):
    """Return a thousand random moments in microseconds, and a packet for each."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    return [
        (fraction, rng.randbytes(rng.randrange(60, 141)))
        for fraction in sorted(rng.sample(range(1_000_000), PER_SECOND))
    ]


def make_pcap(path, seed, packets):
    """Write ``packets`` of 100 octets on average, the same ones every second."""
    rests = [  # of records: all that follows the seconds
        struct.pack("<III", fraction, len(data), len(data)) + data
        for fraction, data in packets_of_a_second(seed)
    ]
    with path.open("wb") as file:
        file.write(pcap_header())
        for second in range(packets // PER_SECOND):
            stamp = struct.pack("<I", FIRST_SECOND + second)
            file.write(stamp + stamp.join(rests))


def make_pcapng(path, seed, packets):
    """Write the same packets as enhanced packet blocks."""
    parts = []
    for fraction, data in packets_of_a_second(seed):
        padded = data + bytes(-len(data) % 4)
        size = struct.pack("<I", 32 + len(padded))
        begin = struct.pack("<I", 6) + size + bytes(4)
        end = struct.pack("<II", len(data), len(data)) + padded + size
        parts.append((fraction, begin, end))
    with path.open("wb") as file:
        file.write(section() + interface())
        for second in range(FIRST_SECOND, FIRST_SECOND + packets // PER_SECOND):
            blocks = []
            for fraction, begin, end in parts:
                units = second * 1_000_000 + fraction
                stamp = struct.pack("<II", units >> 32, units & 0xFFFFFFFF)
                blocks += (begin, stamp, end)
            file.write(b"".join(blocks))


MAKERS = {"pcap": make_pcap, "pcapng": make_pcapng}


def run(command):
    """Run ``command``; return its CPU seconds and its peak memory in MiB."""
    pid = os.posix_spawnp(command[0], command, os.environ)
    _, status, usage = os.wait4(pid, 0)
    if status:
        sys.exit(f"{command[0]} failed: {os.waitstatus_to_exitcode(status)}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def check(path, packets):
    """Let capinfos judge the file."""
    shown = subprocess.run(
        ["capinfos", "-MTrco", path], check=True, capture_output=True, text=True
    ).stdout
    if shown.split()[-2:] != [str(packets), "True"]:
        sys.exit(f"{path}: not {packets} packets in order of time: {shown!r}")


def measure(folder, inputs, packets, rounds):
    """Return per program its (CPU seconds, MiB) of each round."""
    out, reference = folder / "out.pcap", folder / "reference.pcap"
    # Where times are equal, mergecap lets the last of its inputs go first.
    programs = {
        "mergecap": ["mergecap", "-F", "pcap", "-w", str(out), *reversed(inputs)],
        "tcpslice": ["tcpslice", "-w", str(out), *inputs],
        # Nothing says of a pcapng file that microseconds are enough for it.
        "ddump": [DDUMP, "-q", "--precision", "micro", "-w", str(out), *inputs],
        "cat": ["sh", "-c", 'out=$0; exec cat "$@" >"$out"', str(out), *inputs],
    }
    if inputs[0].endswith(".pcapng"):
        del programs["tcpslice"]
    results = {name: [] for name in programs}
    for number in range(rounds + 1):
        for name, command in programs.items():
            out.unlink(missing_ok=True)
            result = run(command)
            if number:
                results[name].append(result)
            elif name == "mergecap":
                out.rename(reference)
            elif name == "ddump":
                check(out, packets)
                if not filecmp.cmp(out, reference, shallow=False):
                    sys.exit("ddump and mergecap do not write the same")
                reference.unlink()
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packets", type=int, default=1_000_000, help="in each file")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for kind, maker in MAKERS.items():
        with tempfile.TemporaryDirectory(prefix="ddump-bench-") as name:
            folder = Path(name)
            inputs = [str(folder / f"{n}.{kind}") for n in range(FILES)]
            for seed, path in enumerate(inputs):
                maker(Path(path), seed, options.packets)
            packets = FILES * options.packets
            results = measure(folder, inputs, packets, options.rounds)
        tell(kind, results, packets)


def tell(kind, results, packets):
    """Print the figures of one kind of files."""
    cpu = {
        name: statistics.median(c for c, _ in each) for name, each in results.items()
    }
    print(f"merge of {FILES} {kind} files, {packets} packets of 100 octets, one output")
    for name, each in results.items():
        spread = f"{min(each)[0]:.2f} to {max(each)[0]:.2f}"
        rate = packets / cpu[name] / 1e6
        peak = max(mib for _, mib in each)
        print(
            f"  {name:9} {cpu[name]:5.2f} s CPU ({spread}), {rate:5.1f} M packets per"
            f" CPU second, {peak:3.0f} MiB at most"
        )
    for peer, goal in GOALS.items():
        if peer in cpu:
            print(
                f"  ddump / {peer}: {cpu['ddump'] / cpu[peer]:.2f}, the goal is {goal};"
                f" cat / {peer}: {cpu['cat'] / cpu[peer]:.2f}"
            )
    peak = max(mib for _, mib in results["ddump"])
    print(f"  ddump's memory: {peak:.0f} MiB, the goal is under {GOAL_MIB}")


if __name__ == "__main__":
    main()
