"""Merge four files of a million packets into one: ddump beside mergecap and tcpslice.

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
from support.captures import pcap_header
from support.programs import DDUMP

FILES = 4
PER_SECOND = 1000
GOALS = {"mergecap": 0.25, "tcpslice": 0.3}
GOAL_MIB = 100


def make(path, seed, packets):
    """Write ``packets`` of 100 octets on average, a thousand random moments a second."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    rests = []  # of records: all that follows the seconds
    for fraction in sorted(rng.sample(range(1_000_000), PER_SECOND)):
        size = rng.randrange(60, 141)
        rests.append(struct.pack("<III", fraction, size, size) + rng.randbytes(size))
    with path.open("wb") as file:
        file.write(pcap_header())
        for second in range(packets // PER_SECOND):
            stamp = struct.pack("<I", 1_700_000_000 + second)
            file.write(stamp + stamp.join(rests))


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
        "ddump": [DDUMP, "-q", "-w", str(out), *inputs],
        "cat": ["sh", "-c", 'out=$0; exec cat "$@" >"$out"', str(out), *inputs],
    }
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
    packets = FILES * options.packets
    with tempfile.TemporaryDirectory(prefix="ddump-bench-") as name:
        folder = Path(name)
        inputs = [str(folder / f"{n}.pcap") for n in range(FILES)]
        for seed, path in enumerate(inputs):
            make(Path(path), seed, options.packets)
        results = measure(folder, inputs, packets, options.rounds)
    cpu = {
        name: statistics.median(c for c, _ in each) for name, each in results.items()
    }
    print(f"merge of {FILES} files, {packets} packets of 116 octets, one output file")
    for name, each in results.items():
        spread = f"{min(each)[0]:.2f} to {max(each)[0]:.2f}"
        rate = packets / cpu[name] / 1e6
        peak = max(mib for _, mib in each)
        print(
            f"  {name:9} {cpu[name]:5.2f} s CPU ({spread}), {rate:5.1f} M packets per"
            f" CPU second, {peak:3.0f} MiB at most"
        )
    for peer, goal in GOALS.items():
        print(
            f"  ddump / {peer}: {cpu['ddump'] / cpu[peer]:.2f}, the goal is {goal}; "
            f"cat / {peer}: {cpu['cat'] / cpu[peer]:.2f}"
        )
    peak = max(mib for _, mib in results["ddump"])
    print(f"  ddump's memory: {peak:.0f} MiB, the goal is under {GOAL_MIB}")


if __name__ == "__main__":
    main()
