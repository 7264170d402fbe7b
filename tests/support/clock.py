"""A clock that a test sets ahead, for a program that waits for days."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_SOURCE = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const volatile long *ahead;

__attribute__((constructor)) static void begin(void)
{
    int file = open(getenv("DDUMP_TEST_AHEAD"), O_RDONLY);
    void *mapped = mmap(NULL, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
    if (file < 0 || mapped == MAP_FAILED)
        abort();
    close(file);
    ahead = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
    long failed = syscall(SYS_clock_gettime, clock, time);
    if (!failed && (clock == CLOCK_MONOTONIC || clock == CLOCK_MONOTONIC_COARSE))
        time->tv_sec += *ahead;
    return (int)failed;
}
"""


class Clock:
    """The monotonic clock of programs that run with ``environment``.

    They see it leap when they look at it next; what they have told the kernel to wait
    for goes on as it was.
    """

    def __init__(self, folder: Path) -> None:
        library = folder / "clock.so"
        self._ahead = 0
        self._file = folder / "ahead"
        self._file.write_bytes(bytes(8))
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, "-xc", "-"],
            check=True,
            input=_SOURCE.encode(),
        )
        self.environment = {
            "LD_PRELOAD": str(library),
            "DDUMP_TEST_AHEAD": str(self._file),
        }

    def advance(self, seconds: int) -> None:
        self._ahead += seconds
        with self._file.open("r+b") as file:
            file.write(self._ahead.to_bytes(8, "little"))
