"""A multipart form read under limits that are counted while the bytes arrive.

Parts stay in memory, each up to its limit, and all together up to the body's: nothing of an upload
is written to disk. After a wrong part the rest of the body is counted and dropped, so that the
caller gets the answer instead of a broken connection, and is not parsed; a body above its limit is
not read to the end.
"""

import difflib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from bundle.errors import ImageTooLarge, LesionError
from service.errors import InvalidRequest, MalformedUpload, RequestTooLarge, UnsupportedMedia

FORM_TYPE = b"multipart/form-data"
# Text parts of one request: an excluded lesion or patient is a part of its own.
MAX_TEXT_PARTS = 1000


@dataclass(frozen=True)
class FormLimits:
    """What one request may carry, in bytes but for `files`."""

    files: int
    file_bytes: int
    text_bytes: int
    body_bytes: int


@dataclass(frozen=True)
class FormParts:
    """The parts that a form may have: names of file parts and of text parts."""

    files: frozenset[str]
    texts: frozenset[str]


@dataclass
class Form:
    """What was sent: part name to its files or texts, in order."""

    files: dict[str, list[bytes]] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)


class _Collector:
    """Receives the parser's events; an error leaves the parser, which then is not used again."""

    def __init__(self, parts: FormParts, limits: FormLimits) -> None:
        self.form = Form()
        self.ended = False
        self._parts = parts
        self._limits = limits
        self._num_files = 0
        self._num_texts = 0
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._name = ""
        self._data = bytearray()

    def on_part_begin(self) -> None:
        self._disposition = b""
        self._data = bytearray()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def on_header_end(self) -> None:
        name, value = self._header
        if bytes(name).lower() == b"content-disposition":
            self._disposition = bytes(value)
        self._header = (bytearray(), bytearray())

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._name in self._parts.files:
            self._num_files += 1
            if self._num_files > self._limits.files:
                raise RequestTooLarge(
                    f"{self._name}: expected at most {self._limits.files} images a request"
                )
            return
        self._num_texts += 1
        if self._num_texts > MAX_TEXT_PARTS:
            raise RequestTooLarge(f"expected at most {MAX_TEXT_PARTS} text parts")
        if self._name not in self._parts.texts:
            raise self._unknown_part()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name in self._parts.files:
            limit = self._limits.file_bytes
            if len(self._data) + end - start > limit:
                raise ImageTooLarge(f"{self._name}: expected at most {limit} bytes a file")
        elif len(self._data) + end - start > self._limits.text_bytes:
            raise RequestTooLarge(
                f"{self._name}: expected at most {self._limits.text_bytes} bytes of text"
            )
        self._data += data[start:end]

    def on_part_end(self) -> None:
        if self._name in self._parts.files:
            if not self._data:
                raise InvalidRequest(
                    f"{self._name}: expected an image file, got an empty one", field=self._name
                )
            self.form.files.setdefault(self._name, []).append(bytes(self._data))
            return
        try:
            text = self._data.decode()
        except UnicodeDecodeError:
            raise InvalidRequest(f"{self._name}: expected UTF-8 text", field=self._name) from None
        self.form.texts.setdefault(self._name, []).append(text)

    def on_end(self) -> None:
        self.ended = True

    def _unknown_part(self) -> LesionError:
        known = sorted(self._parts.files | self._parts.texts)
        nearest = difflib.get_close_matches(self._name, known, n=1, cutoff=0.0)[0]
        return InvalidRequest(
            f"unknown part {self._name[:100]!r}; nearest is {nearest!r}; "
            f"accepted: {', '.join(known)}",
            field=self._name[:100],
        )


async def read_form(
    content_type: str,
    chunks: AsyncIterator[bytes],
    parts: FormParts,
    limits: FormLimits,
) -> Form:
    """Return the form's parts.

    Args:
        content_type: the request's header.
        chunks: the body as it arrives.
        parts: which parts are accepted.
        limits: how much of them.

    Raises:
        UnsupportedMedia: the body is not declared as multipart/form-data.
        RequestTooLarge: the body, a text or the number of images exceeds its limit.
        ImageTooLarge: a file exceeds its limit.
        InvalidRequest: a part is unknown or an image empty.
        MalformedUpload: the body is not such a form, or ends early.
    """
    kind, options = parse_options_header(content_type)
    if kind != FORM_TYPE:
        raise UnsupportedMedia(
            f"expected multipart/form-data, got {content_type[:100]!r}: send the image as a "
            "form's file (curl -F image=@lesion.jpg)"
        )
    collector = _Collector(parts, limits)
    parser = _parser(options.get(b"boundary", b""), collector)
    refused: LesionError | None = None
    received = 0
    async for chunk in chunks:
        received += len(chunk)
        if received > limits.body_bytes:
            raise RequestTooLarge(f"expected at most {limits.body_bytes} bytes a request")
        if refused is not None:
            continue
        try:
            parser.write(chunk)
        except FormParserError:
            refused = MalformedUpload("expected a well-formed multipart/form-data body")
        except LesionError as error:
            refused = error
    if refused is not None:
        raise refused
    if not collector.ended:
        raise MalformedUpload("expected a complete multipart/form-data body, it ends early")
    return collector.form


def _parser(boundary: bytes, collector: _Collector) -> MultipartParser:
    if not boundary:
        raise MalformedUpload("multipart/form-data: expected a boundary in the content type")
    try:
        return MultipartParser(
            boundary,
            {
                "on_part_begin": collector.on_part_begin,
                "on_part_data": collector.on_part_data,
                "on_part_end": collector.on_part_end,
                "on_header_field": collector.on_header_field,
                "on_header_value": collector.on_header_value,
                "on_header_end": collector.on_header_end,
                "on_headers_finished": collector.on_headers_finished,
                "on_end": collector.on_end,
            },
        )
    except FormParserError:
        raise MalformedUpload(
            f"multipart/form-data: expected a short boundary, got {len(boundary)} bytes"
        ) from None
