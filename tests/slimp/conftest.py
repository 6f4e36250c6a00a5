"""The command as a shell runs it: arguments in, exit code and two streams out."""

import io
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

import pytest

from slimp.cli import main
from tests.one_thread import one_thread as one_thread


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        """What it said last, for a person to read."""
        return self.out.splitlines()[-1]


Slimp = Callable[..., Ended]


@pytest.fixture(scope="session")
def slimp() -> Slimp:
    """Return a function that runs `slimp` with these arguments."""

    def run(*arguments: object) -> Ended:
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(sys, "argv", ["slimp", *map(str, arguments)])
            with pytest.raises(SystemExit) as ended:
                main()
        code = ended.value.code
        assert isinstance(code, int)
        return Ended(code, out.getvalue(), err.getvalue())

    return run
