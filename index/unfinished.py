"""A catalogue in the making: what an indexing that was cut off leaves, and the next goes on from.

It lies beside the catalogue that it becomes, in the folder `CATALOGUE.partial`, and takes its name
when it is complete. Lesions that are in it are not embedded again.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from bundle.errors import CatalogueError
from bundle.store import check_free

PARTIAL = ".partial"
CATALOGUE = "catalogue"
RUN = "run.json"
REFUSED = "refused.jsonl"


@dataclass(frozen=True)
class UnreadableImage:
    """An image of the cohort that could not be decoded or embedded."""

    image_id: str
    lesion_id: str
    reason: str


class Unfinished:
    """The folder of an indexing; made by `unfinished`.

    Attributes:
        catalogue: the folder in which the catalogue is made.
        is_begun: whether it is there, with this run's lesions.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any], *, is_begun: bool) -> None:
        self._folder, self._run, self.is_begun = folder, run, is_begun
        self.catalogue = folder / CATALOGUE

    def begin(self) -> None:
        """Be told that the catalogue is there, for whoever goes on to open."""
        if self.is_begun:
            return
        with (self._folder / RUN).open("w", encoding="utf-8") as file:
            file.write(f"{json.dumps(self._run)}\n")
            file.flush()
            os.fsync(file.fileno())

    def discard(self) -> None:
        """Remove what was begun."""
        shutil.rmtree(self._folder)

    def note(self, refused: Sequence[UnreadableImage]) -> None:
        """Keep what was refused, before the lesions that were read beside it are committed."""
        if refused:
            with (self._folder / REFUSED).open("a", encoding="utf-8") as file:
                file.writelines(f"{json.dumps(astuple(one))}\n" for one in refused)
                file.flush()
                os.fsync(file.fileno())

    def noted(self) -> list[UnreadableImage]:
        """Return what was kept; a line that was cut off is of lesions that were not committed.

        Raises:
            CatalogueError: the file is not what `note` wrote.
        """
        path = self._folder / REFUSED
        if not path.exists():
            return []
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        # What is noted from now on begins a line of its own.
        os.truncate(path, len(whole))
        try:
            # A process that ended before it committed its lesions noted theirs once before.
            return list(
                dict.fromkeys(UnreadableImage(*json.loads(line)) for line in whole.splitlines())
            )
        except (ValueError, TypeError):
            raise CatalogueError(
                f"{path}: expected what an indexing noted, got something else: remove "
                f"{self._folder} and index again"
            ) from None


@contextmanager
def unfinished(out: Path, run: Mapping[str, Any]) -> Iterator[Unfinished]:
    """Yield the folder whose catalogue becomes `out` if the block succeeds, and stays if not.

    Args:
        out: a folder that does not exist yet or is empty.
        run: what the catalogue is made of and with, ready for JSON; who goes on says the same.

    Raises:
        BundleError: `out` is taken.
        CatalogueError: another process is at it, or what was begun is of another run.
    """
    check_free(out)
    named = out.absolute()
    folder = named.with_name(f"{named.name}{PARTIAL}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / RUN).open("a+", encoding="utf-8", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CatalogueError(
                f"{folder}: another process is indexing there: wait for its end, or name another "
                "folder"
            ) from None
        file.seek(0)
        begun = file.read()
        # Without its end it was cut off before there was a lesion; without a catalogue, when that
        # had its name already.
        is_begun = begun.endswith("\n") and any((folder / CATALOGUE).glob("*.sqlite"))
        if is_begun and begun != f"{json.dumps(run)}\n":
            raise CatalogueError(
                f"{folder}: an indexing of another cohort, splits, bundle or variant was begun "
                "there: run that one to its end, or remove the folder"
            )
        if not is_begun:
            shutil.rmtree(folder / CATALOGUE, ignore_errors=True)
            (folder / REFUSED).unlink(missing_ok=True)
        yield Unfinished(folder, run, is_begun=is_begun)
        if out.exists():
            out.rmdir()
        (folder / CATALOGUE).rename(out)
        shutil.rmtree(folder)
