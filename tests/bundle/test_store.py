"""The bundle on disk: everything that was changed, cut, added or moved is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundle import store
from bundle.errors import BundleError, CorruptBundle, UnsupportedVersion
from bundle.manifest import FileEntry, identify
from bundle.store import MANIFEST, REQUIRED, Bundle, open_bundle, read_verified, seal, staged_folder
from tests.fakes import make_calibration, manifest_content

FILES = (
    "MODEL_CARD.md",
    "calibration.json",
    "classifier.onnx",
    "context.onnx",
    "golden.npz",
    "image_encoder.onnx",
    "metadata_encoder.onnx",
    "novelty.npz",
    "patient_encoder.onnx",
)


def rewrite_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest and give it the id that fits, as an attacker would."""
    path = folder / MANIFEST
    content = json.loads(path.read_text())
    change(content)
    content["bundle_id"] = identify(content)
    path.write_text(json.dumps(content))


def rename_file(folder: Path, old: str, new: str) -> None:
    """Let the manifest list a file under another name."""

    def change(content: dict[str, Any]) -> None:
        content["files"][new] = content["files"].pop(old)

    rewrite_manifest(folder, change)


# ------------------------------------------------------------------ sealing and opening


def test_a_sealed_bundle_opens_with_what_was_sealed(unsealed: Callable[..., Path]) -> None:
    folder = unsealed()
    sealed = seal(folder, manifest_content())
    bundle = open_bundle(folder)
    assert bundle.manifest == sealed
    assert bundle.path == folder
    assert tuple(bundle.manifest.files) == FILES
    assert bundle.calibration == make_calibration()
    for name in FILES:
        assert bundle.has(name)
        assert bundle.read(name) == (folder / name).read_bytes()
        assert bundle.manifest.files[name].bytes == (folder / name).stat().st_size


def test_the_manifest_is_readable_json_with_a_time_in_utc(unsealed: Callable[..., Path]) -> None:
    folder = unsealed()
    seal(folder, manifest_content())
    text = (folder / MANIFEST).read_text()
    content = json.loads(text)
    assert text == json.dumps(content, indent=1) + "\n"
    assert content["format_version"] == 2
    assert content["created_at"].endswith("+00:00")
    assert "." not in content["created_at"]


def test_equal_content_has_an_equal_id_whatever_the_folder(
    pristine_bundle: Bundle, make_bundle: Callable[..., Bundle]
) -> None:
    assert make_bundle().manifest.bundle_id == pristine_bundle.manifest.bundle_id


def test_other_content_has_another_id(
    pristine_bundle: Bundle, make_bundle: Callable[..., Bundle]
) -> None:
    other = make_bundle(calibration=make_calibration(novelty_threshold=9.0))
    assert other.manifest.bundle_id != pristine_bundle.manifest.bundle_id


def test_files_in_folders_are_listed_and_read(unsealed: Callable[..., Path]) -> None:
    folder = unsealed()
    (folder / "plots").mkdir()
    (folder / "plots" / "calibration.svg").write_text("<svg/>")
    seal(folder, manifest_content())
    assert open_bundle(folder).read("plots/calibration.svg") == b"<svg/>"


@pytest.mark.parametrize("name", REQUIRED)
def test_sealing_without_a_required_file_is_refused(
    unsealed: Callable[..., Path], name: str
) -> None:
    folder = unsealed()
    (folder / name).unlink()
    with pytest.raises(CorruptBundle, match=f"^a bundle needs {name}$"):
        seal(folder, manifest_content())
    assert not (folder / MANIFEST).exists()


def test_sealing_names_every_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CorruptBundle, match=f"a bundle needs {', '.join(REQUIRED)}"):
        seal(tmp_path, manifest_content())


def test_sealing_with_a_value_that_is_not_accepted_is_refused(
    unsealed: Callable[..., Path],
) -> None:
    folder = unsealed()
    with pytest.raises(CorruptBundle, match=r"manifest\.json: embedding_dim: Input should be"):
        seal(folder, manifest_content(embedding_dim=0))
    assert not (folder / MANIFEST).exists()


def test_sealing_twice_is_refused(bundle_folder: Path) -> None:
    before = (bundle_folder / MANIFEST).read_bytes()
    with pytest.raises(CorruptBundle, match="already: a bundle is sealed once"):
        seal(bundle_folder, manifest_content())
    assert (bundle_folder / MANIFEST).read_bytes() == before


@pytest.mark.parametrize("name", [".hidden", "two words", "a\\b", "käse", "x" * 101])
def test_sealing_a_file_that_could_not_be_opened_again_is_refused(
    unsealed: Callable[..., Path], name: str
) -> None:
    folder = unsealed()
    (folder / name).write_text("x")
    with pytest.raises(CorruptBundle, match="expected the plain relative name of a file inside"):
        seal(folder, manifest_content())


# ------------------------------------------------------------------ damage


def test_what_is_no_bundle_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CorruptBundle, match=r"expected a bundle folder with a manifest\.json"):
            open_bundle(path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_one_changed_byte_in_any_file_is_refused(
    bundle_folder: Path, name: str, place: str
) -> None:
    path = bundle_folder / name
    data = bytearray(path.read_bytes())
    position = {"first": 0, "middle": len(data) // 2, "last": len(data) - 1}[place]
    data[position] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptBundle, match=f"^{name}: its SHA-256 is not the manifest's"):
        open_bundle(bundle_folder)


def test_any_changed_byte_of_the_manifest_is_refused_or_changes_nothing_that_counts(
    bundle_folder: Path,
) -> None:
    path = bundle_folder / MANIFEST
    data = path.read_bytes()
    whole = open_bundle(bundle_folder).manifest
    for position in range(0, len(data), 13):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        try:
            changed = open_bundle(bundle_folder).manifest
        except BundleError:
            continue
        assert changed.model_copy(update={"created_at": whole.created_at}) == whole


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_truncated_file_is_refused(bundle_folder: Path, name: str) -> None:
    path = bundle_folder / name
    data = path.read_bytes()
    for kept in (0, len(data) // 2, len(data) - 2):
        path.write_bytes(data[:kept])
        reason = "not JSON" if name == MANIFEST else f"expected {len(data)} bytes, got {kept}"
        with pytest.raises(CorruptBundle, match=f"^{name}.*{reason}"):
            open_bundle(bundle_folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(bundle_folder: Path, name: str) -> None:
    size = (bundle_folder / name).stat().st_size
    (bundle_folder / name).unlink()
    reason = f"^{name}: expected {size} bytes, the file is missing"
    with pytest.raises(CorruptBundle, match=reason):
        open_bundle(bundle_folder)


def test_a_longer_file_is_refused(bundle_folder: Path) -> None:
    with (bundle_folder / "MODEL_CARD.md").open("ab") as file:
        file.write(b"!")
    with pytest.raises(CorruptBundle, match=r"^MODEL_CARD\.md: expected \d+ bytes, got \d+$"):
        open_bundle(bundle_folder)


def test_a_folder_in_a_files_place_is_refused(bundle_folder: Path) -> None:
    (bundle_folder / "MODEL_CARD.md").unlink()
    (bundle_folder / "MODEL_CARD.md").mkdir()
    with pytest.raises(CorruptBundle, match="the file is missing"):
        open_bundle(bundle_folder)


@pytest.mark.parametrize("name", ["extra.onnx", "plots/extra.svg", ".hidden"])
def test_a_file_that_the_manifest_does_not_list_is_refused(bundle_folder: Path, name: str) -> None:
    path = bundle_folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("x")
    with pytest.raises(CorruptBundle, match=f"'{name}': this file is not in the manifest; remove"):
        open_bundle(bundle_folder)


def test_an_unlisted_link_is_refused_wherever_it_leads(bundle_folder: Path, tmp_path: Path) -> None:
    for target in (tmp_path, bundle_folder / "missing", bundle_folder / "golden.npz"):
        link = bundle_folder / "link"
        link.symlink_to(target)
        with pytest.raises(CorruptBundle, match="'link': this file is not in the manifest"):
            open_bundle(bundle_folder)
        link.unlink()


def test_an_empty_folder_in_a_bundle_does_no_harm(bundle_folder: Path) -> None:
    (bundle_folder / "plots").mkdir()
    open_bundle(bundle_folder)


@pytest.mark.parametrize("name", REQUIRED)
def test_a_manifest_that_lists_no_required_file_is_refused(bundle_folder: Path, name: str) -> None:
    (bundle_folder / name).unlink()
    rewrite_manifest(bundle_folder, lambda content: content["files"].pop(name))
    with pytest.raises(CorruptBundle, match=f"^the manifest lacks {name}$"):
        open_bundle(bundle_folder)


def test_a_manifest_names_every_required_file_that_it_lacks(bundle_folder: Path) -> None:
    rewrite_manifest(bundle_folder, lambda content: content["files"].clear())
    with pytest.raises(CorruptBundle, match=f"^the manifest lacks {', '.join(REQUIRED)}$"):
        open_bundle(bundle_folder)


def test_a_newer_format_is_refused_with_what_to_do(bundle_folder: Path) -> None:
    rewrite_manifest(bundle_folder, lambda content: content.update(format_version=3))
    with pytest.raises(UnsupportedVersion, match="has format 3: upgrade slimp"):
        open_bundle(bundle_folder)


def test_a_file_larger_than_any_model_is_refused(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = open_bundle(bundle_folder).manifest.files["golden.npz"]
    monkeypatch.setattr(store, "MAX_FILE_BYTES", entry.bytes)
    assert read_verified(bundle_folder, "golden.npz", entry)
    monkeypatch.setattr(store, "MAX_FILE_BYTES", entry.bytes - 1)
    with pytest.raises(CorruptBundle, match=f"expected at most {entry.bytes - 1} bytes, got"):
        read_verified(bundle_folder, "golden.npz", entry)


def test_a_file_is_verified_again_whenever_it_is_read(bundle_folder: Path) -> None:
    bundle = open_bundle(bundle_folder)
    data = bytearray((bundle_folder / "golden.npz").read_bytes())
    data[5] ^= 1
    (bundle_folder / "golden.npz").write_bytes(bytes(data))
    with pytest.raises(CorruptBundle, match="the file was changed"):
        bundle.read("golden.npz")


@pytest.mark.parametrize("name", ["secret.txt", MANIFEST, "../x"])
def test_a_file_that_is_not_listed_cannot_be_read(pristine_bundle: Bundle, name: str) -> None:
    assert not pristine_bundle.has(name)
    with pytest.raises(CorruptBundle, match="the manifest does not list this file"):
        pristine_bundle.read(name)


# ------------------------------------------------------------------ escapes


@pytest.mark.parametrize(
    "name",
    [
        "../outside.txt",
        "a/../../outside.txt",
        "..",
        ".",
        "",
        "./MODEL_CARD.md",
        "a//b",
        "a/",
        "..\\outside.txt",
        "C:\\outside.txt",
        "nul\0byte",
        "\ud800",
        "new\nline",
        "MODEL_CARD.md\n",
        "x" * 5000,
        "a/b/c/d/e",
    ],
    ids=range(16),
)
def test_a_name_that_is_not_plain_is_refused(bundle_folder: Path, name: str) -> None:
    (bundle_folder.parent / "outside.txt").write_bytes(
        (bundle_folder / "MODEL_CARD.md").read_bytes()
    )
    rename_file(bundle_folder, "MODEL_CARD.md", name)
    with pytest.raises(CorruptBundle) as caught:
        open_bundle(bundle_folder)
    assert str(caught.value) == (
        f"{name[:100]!r}: expected the plain relative name of a file inside the bundle's folder "
        "(letters, digits, '_', '-', '.')"
    )


def test_an_absolute_path_is_refused(bundle_folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_bytes((bundle_folder / "MODEL_CARD.md").read_bytes())
    rename_file(bundle_folder, "MODEL_CARD.md", str(outside))
    with pytest.raises(CorruptBundle, match="expected the plain relative name of a file inside"):
        open_bundle(bundle_folder)


def test_a_link_out_of_the_folder_is_refused(bundle_folder: Path, tmp_path: Path) -> None:
    card = bundle_folder / "MODEL_CARD.md"
    card.rename(tmp_path / "card")
    card.symlink_to(tmp_path / "card")
    with pytest.raises(CorruptBundle, match=r"'MODEL_CARD\.md': expected the plain relative name"):
        open_bundle(bundle_folder)


def test_a_linked_folder_that_leads_out_is_refused(bundle_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (bundle_folder / "MODEL_CARD.md").rename(tmp_path / "elsewhere" / "card")
    (bundle_folder / "docs").symlink_to(tmp_path / "elsewhere")
    rename_file(bundle_folder, "MODEL_CARD.md", "docs/card")
    with pytest.raises(CorruptBundle, match="'docs/card': expected the plain relative name"):
        open_bundle(bundle_folder)


def test_a_link_to_itself_is_refused(bundle_folder: Path) -> None:
    card = bundle_folder / "MODEL_CARD.md"
    card.unlink()
    card.symlink_to(card)
    with pytest.raises(CorruptBundle, match=r"MODEL_CARD\.md"):
        open_bundle(bundle_folder)


def test_a_bundle_reached_through_a_link_opens(bundle_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(bundle_folder)
    assert open_bundle(tmp_path / "current").read("MODEL_CARD.md")


def test_a_neighbour_whose_name_begins_alike_is_outside(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "bb").mkdir()
    (tmp_path / "bb" / "x").write_bytes(b"")
    (tmp_path / "b" / "x").symlink_to(tmp_path / "bb" / "x")
    with pytest.raises(CorruptBundle, match="expected the plain relative name"):
        read_verified(tmp_path / "b", "x", FileEntry(sha256="0" * 64, bytes=0))


# ------------------------------------------------------------------ calibration


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Invalid JSON"),
        ("[]", "valid dictionary|valid object|an object"),
        ("{}", "conditions: Field required"),
        (make_calibration().model_dump_json().replace("1.5", "NaN"), "novelty_threshold: Input"),
    ],
)
def test_an_unreadable_calibration_is_refused(
    unsealed: Callable[..., Path], text: str, reason: str
) -> None:
    folder = unsealed()
    (folder / "calibration.json").write_text(text)
    seal(folder, manifest_content())
    with pytest.raises(CorruptBundle, match=rf"^calibration\.json: .*({reason})"):
        open_bundle(folder)


def test_a_calibration_for_other_labels_is_refused(make_bundle: Callable[..., Bundle]) -> None:
    prevalence = {"nv": 0.5, "mel": 0.4, "scc": 0.1}
    with pytest.raises(CorruptBundle, match=r"^calibration\.json: prevalence does not name the"):
        make_bundle(calibration=make_calibration(prevalence=prevalence))


def test_a_calibration_for_another_number_of_labels_is_refused(
    make_bundle: Callable[..., Bundle],
) -> None:
    with pytest.raises(CorruptBundle, match=r"calibration\.json: given does not fit 2 labels"):
        make_bundle({"labels": ["nv", "mel"], "malignant_labels": ["mel"]})


@pytest.mark.parametrize("condition", ["given", "extrapolated", "missing"])
def test_a_calibration_without_a_condition_is_refused(
    make_bundle: Callable[..., Bundle], condition: str
) -> None:
    rest = {k: v for k, v in make_calibration().conditions.items() if k != condition}
    with pytest.raises(CorruptBundle, match=f"the condition '{condition}' is not calibrated"):
        make_bundle(calibration=make_calibration(conditions=rest))


# ------------------------------------------------------------------ staging


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("exists", [False, True])
def test_a_staged_folder_takes_its_place_when_the_block_succeeds(
    tmp_path: Path, exists: bool
) -> None:
    out = tmp_path / "deep" / "out"
    if exists:
        out.mkdir(parents=True)
    with staged_folder(out) as stage:
        assert stage.parent == out.parent
        assert not any(stage.iterdir())
        assert not out.exists() or not any(out.iterdir())
        (stage / "file").write_text("x")
    assert (out / "file").read_text() == "x"
    assert left_over(out.parent) == ["out"]
    assert out.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("exists", [False, True])
def test_a_failing_block_leaves_nothing_behind(
    tmp_path: Path, failure: type[BaseException], exists: bool
) -> None:
    out = tmp_path / "out"
    if exists:
        out.mkdir()

    def fail() -> None:
        with staged_folder(out) as stage:
            (stage / "sub").mkdir()
            (stage / "sub" / "file").write_text("x")
            raise failure

    with pytest.raises(failure):
        fail()
    assert left_over(tmp_path) == (["out"] if exists else [])
    assert not exists or left_over(out) == []


def test_a_target_that_holds_something_is_refused_and_kept(tmp_path: Path) -> None:
    full, file, link = tmp_path / "full", tmp_path / "file", tmp_path / "link"
    full.mkdir()
    (full / "precious").write_text("x")
    file.write_text("x")
    (tmp_path / "empty").mkdir()
    link.symlink_to(tmp_path / "empty")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    before = left_over(tmp_path)
    for out in (full, file, link, tmp_path / "dangling"):
        with (
            pytest.raises(BundleError, match=f"^{out} exists: name a folder that does not, or"),
            staged_folder(out),
        ):
            pytest.fail("the block must not run")
    assert left_over(tmp_path) == before
    assert (full / "precious").read_text() == "x"


def test_a_target_is_named_relative_to_the_working_directory_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with staged_folder(Path("out")) as stage:
        (stage / "file").write_text("x")
    assert left_over(tmp_path / "out") == ["file"]
