"""What a caller or a disk hands to the service's own parsers: read, or refused by our error.

`test_fuzz.py` sends whole requests; here are the parsers that most of those do not reach.
"""

import contextlib
import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from bundle.errors import InvalidRecord, LesionError
from service.bulk_records import read_records
from service.bulk_table import Journal
from service.errors import InvalidRequest
from service.requests import parse_json
from tests.fuzzing import ANY_JSON, damaged, fuzzed
from tests.service.test_uploads import form_body, read

FORM = form_body(("image", b"\xff\xd8 a picture"), ("metadata", b'{"sex": "female"}'), ("k", b"3"))
RECORDS = b'image,sex,age\r\n1.png,female,30\r\n"2,2.png",male,\r\n'
RUN = {"bundle_id": "ab" * 32}
TEXT = st.text('{}[]":,.eE+-0123456789 \\ntrulfasINy\ud800', max_size=60)


@fuzzed
@given(damaged(FORM), st.integers(1, 80))
def test_a_damaged_form_is_read_within_its_limits_or_refused(body: bytes, chunk: int) -> None:
    with contextlib.suppress(LesionError):
        form = read(body, chunk=chunk)
        assert set(form.files) <= {"image"}
        assert set(form.texts) <= {"metadata", "k"}
        assert all(len(data) <= 100 for data in form.files.get("image", []))


@fuzzed
@given(TEXT | ANY_JSON.map(json.dumps) | st.integers(1, 5000).map(lambda n: "[" * n))
def test_any_text_is_strict_json_that_can_be_written_again_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        said = json.dumps(parse_json(text), allow_nan=False, ensure_ascii=False)
        assert parse_json(said) == parse_json(text)


@fuzzed
@given(damaged(RECORDS))
def test_a_damaged_table_of_records_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "records.csv"
    path.write_bytes(content)
    with contextlib.suppress(InvalidRecord):
        assert all(name.strip() == name != "" for name in read_records(path))


@fuzzed
@given(st.data())
def test_a_journal_that_was_cut_off_anywhere_goes_on_with_its_whole_rows(
    tmp_path: Path, data: st.DataObject
) -> None:
    """A journal is the process's own: what happens to it is a cut, not a hand."""
    path, images = tmp_path / "rows.partial", [tmp_path / f"{n}.png" for n in range(4)]
    path.unlink(missing_ok=True)
    with Journal(path, RUN) as journal:
        journal.add([(image, None, {"n": n}) for n, image in enumerate(images)])
    whole = path.read_bytes()
    keep = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:keep])
    rows = max(0, whole[:keep].count(b"\n") - 1)
    with Journal(path, RUN) as journal:
        assert [image in journal for image in images] == [n < rows for n in range(4)]
        journal.add([(images[3], None, {"n": 3})])
        assert journal.row(images[3]) == {"n": 3}
    with contextlib.suppress(InvalidRequest), Journal(path, {"bundle_id": "another"}):
        raise AssertionError("rows of another run were taken over")
