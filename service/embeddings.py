"""What was made of pictures that came before: a bounded memory, for one service process.

A picture is known again by its file, which saves decoding it, or by its pixels, which saves the
model; both under the bundle and variant that embedded it. Whatever erases a lesion empties the
memory: it may hold pictures of the erased person that never were in the catalogue, and nothing
tells which those are.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from bundle.calibration import FloatArray

MIB = 1024 * 1024
# Beside the embedding's numbers: keys, measurements and the table's own. Measured and rounded up.
SEEN_BYTES, FILE_BYTES = 2_000, 500


@dataclass(frozen=True)
class Model:
    """Which model made an embedding."""

    bundle_id: str
    variant: str


@dataclass(frozen=True)
class Seen:
    """One picture after it was looked at.

    Attributes:
        content: hash of its pixels.
        scores: its measurements.
        embedding: (D,) float32, the image encoder's feature, not normalised; read-only.
    """

    content: str
    scores: Mapping[str, float]
    embedding: FloatArray


Key = tuple[Model, str]


def file_digest(data: bytes) -> str:
    """Return what a file is known by; a prefix keeps it apart from a hash of pixels."""
    return f"file:{hashlib.sha256(data).hexdigest()}"


class EmbeddingCache:
    """Pictures seen before, those asked for last kept longest; for any number of threads."""

    def __init__(self, mib: int) -> None:
        """Hold nothing yet, and at most so many MiB."""
        self._max_bytes = mib * MIB
        # A file's entry is the hash of its pixels, under which the picture itself is.
        self._entries: OrderedDict[Key, Seen | str] = OrderedDict()
        self._lock = threading.Lock()
        self._bytes = self._era = self._hits = self._misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        return self._bytes

    @property
    def hits(self) -> int:
        """Pictures so far that no model had to see again."""
        return self._hits

    @property
    def misses(self) -> int:
        """Pictures so far that a model had to see."""
        return self._misses

    @property
    def era(self) -> int:
        """Return a number that `clear` changes; what is made in an earlier one is not kept."""
        return self._era

    def by_file(self, model: Model, digest: str) -> Seen | None:
        """Return the picture that this file holds, None if it is not known."""
        with self._lock:
            content = self._touch((model, digest))
            seen = self._touch((model, content)) if isinstance(content, str) else None
            self._hits += isinstance(seen, Seen)
            return seen if isinstance(seen, Seen) else None

    def by_content(self, model: Model, content: str) -> Seen | None:
        """Return the picture with these pixels, None if it is not known; either is counted."""
        with self._lock:
            seen = self._touch((model, content))
            known = isinstance(seen, Seen)
            self._hits += known
            self._misses += not known
            return seen if isinstance(seen, Seen) else None

    def keep(self, model: Model, digest: str, seen: Seen, era: int) -> None:
        """Keep a picture under its file and its pixels, in the place of those asked for least.

        Args:
            model: what embedded it.
            digest: its file's.
            seen: what was made of it.
            era: the cache's when the request began.
        """
        with self._lock:
            if era != self._era:
                return
            self._put((model, digest), seen.content)
            self._put((model, seen.content), seen)
            while self._bytes > self._max_bytes:
                _, dropped = self._entries.popitem(last=False)
                self._bytes -= _size(dropped)

    def clear(self) -> None:
        """Forget all pictures, those that are being looked at now included."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0
            self._era += 1

    def _touch(self, key: Key) -> Seen | str | None:
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def _put(self, key: Key, entry: Seen | str) -> None:
        if self._touch(key) is None:
            self._entries[key] = entry
            self._bytes += _size(entry)


def _size(entry: Seen | str) -> int:
    return FILE_BYTES if isinstance(entry, str) else SEEN_BYTES + entry.embedding.nbytes
