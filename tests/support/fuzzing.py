"""Runs a fuzzer's cases for a time; one that fails can be run again by its number."""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def fuzz(check: Callable[[int], None]) -> None:
    """Call ``check`` with numbers that go on from a random one, or with ``--seed``."""
    program = Path(sys.argv[0]).name
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--seed", type=int, help="run this one case")
    options = parser.parse_args()
    if options.seed is not None:
        check(options.seed)
        return
    first = random.SystemRandom().randrange(1 << 48)
    deadline = time.monotonic() + options.seconds
    count = 0
    while time.monotonic() < deadline:
        try:
            check(first + count)
        except BaseException:
            sys.stderr.write(f"failed: {program} --seed {first + count}\n")
            raise
        count += 1
    sys.stdout.write(
        f"{program}: {count} cases in {options.seconds:g} s, from seed {first}\n"
    )
