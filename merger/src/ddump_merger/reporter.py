"""Has the account of a run written when it is over, however it ended.

The file is opened before anything else is tried, so that nobody finds out afterwards
that it cannot be; what was in it stays until the account is written over it, whole.
What makes the account is imported when one is written: most runs have none.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from ddump_common.errors import DdumpError, ExitCode, OutputError, UsageError

from .output import Output
from .summary import failure_code, failures

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from .config import Config
    from .counters import Counters
    from .lane import Lane

__all__ = ["Reporter"]

logger = logging.getLogger(__name__)


class Reporter:
    """The report of one run; does nothing when none is asked for.

    As a context manager it is around the whole run. What ends that, an exception too, is
    what it reports; after wrong usage nothing was run, and there is no report.
    """

    def __init__(self, config: Config) -> None:
        """Open the file.

        Raises:
            OutputError: it cannot be written.

        """
        self._begun_ns = time.time_ns()
        self._name = "standard output" if config.output is None else str(config.output)
        self._targets = config.targets
        self._lanes: Sequence[Lane] = ()
        self._counters: Callable[[int], Counters] | None = None
        self._code = ExitCode.OK
        self.output = (
            None if config.report is None else Output(config.report, patient=False)
        )
        """What is written to, which nothing else may be."""

    def watch(self, lanes: Sequence[Lane], counters: Callable[[int], Counters]) -> None:
        """Tell what there is to report of, as soon as it is known."""
        self._lanes = lanes
        self._counters = counters

    def end(self, code: ExitCode) -> ExitCode:
        """Tell how a run went that nothing ended early; return the same."""
        self._code = code
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write the report and close the file.

        Raises:
            OutputError: it cannot be written, and nothing else is wrong.

        """
        if self.output is None:
            return
        try:
            if not isinstance(exc, UsageError):
                self._write(self.output, exc)
            self.output.close()
        except OSError as error:
            with suppress(OSError):
                self.output.remove()
            told = f"cannot write {self.output.name}: {error.strerror}"
            if exc is None:
                raise OutputError(told) from error
            logger.error("%s", told)  # noqa: TRY400  # no traceback: it is said to a user

    def _write(self, output: Output, exc: BaseException | None) -> None:
        from .report import compose, serialized

        report = compose(
            self._targets,
            self._lanes,
            self._counters,
            begun_ns=self._begun_ns,
            ended_ns=time.time_ns(),
            exit_code=self._code if exc is None else failure_code(exc),
            error="; ".join(map(_told, failures(exc))),
            output=self._name,
        )
        output.begin()
        left = memoryview(serialized(report))
        while left:
            left = left[os.write(output.fd, left) :]


def _told(failure: BaseException) -> str:
    if isinstance(failure, DdumpError):
        return str(failure)
    if isinstance(failure, BrokenPipeError):
        return "the reader of the output has gone"
    return type(failure).__name__
