"""Every verb's exit code and words: 0 done, 1 one clear line, 2 usage."""

import csv
import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import service.server
from cohort.cohort import Cohort
from cohort.readers import NAMES
from cohort.synthetic import DEMO_SETTINGS
from index.catalogue import Catalogue
from service.settings import Settings
from slimp import verbs
from tests.fakes import GREEN, RED, draw_image, make_lesion, write_bundle, write_catalogue
from tests.training.squares import write_cohort

Slimp = Callable[..., Any]
# What each verb cannot do without.
ARGUMENTS: dict[str, list[str]] = {
    "prepare": ["table", "absent", "--out", "out"],
    "train": ["absent", "--config", "absent.toml", "--out", "out"],
    "adapt": ["absent", "absent", "--out", "out"],
    "fit": ["absent", "absent", "--out", "out"],
    "evaluate": ["absent", "absent", "--out", "out"],
    "compare": ["absent"],
    "export": ["absent", "--out", "out"],
    "index": ["absent", "absent", "--out", "out"],
    "serve": ["--port", "0"],
    "predict": ["absent", "absent", "--out", "out.csv"],
    "backup": ["absent", "--out", "out"],
    "restore": ["absent", "--out", "out"],
}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a folder of the test's own, with no setting of the machine's."""
    monkeypatch.chdir(tmp_path)
    for key in [key for key in os.environ if key.startswith("SLIMP_")]:
        monkeypatch.delenv(key)


def assert_failed(ended: Any, *words: str) -> None:
    """Check for exit code 1 and one line on stderr with these words."""
    assert ended.code == 1, ended
    assert ended.err.startswith("slimp: ")
    assert ended.err.endswith("\n")
    assert ended.err.count("\n") == 1
    for word in words:
        assert word in ended.err


def test_libraries_are_told_the_quota_unless_the_site_says_otherwise(
    slimp: Slimp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bundle.cpus.available_cpus", lambda: 3)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    slimp("--help")
    assert os.environ["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    slimp("--help")
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_help_names_every_verb_and_says_what_it_is_not(slimp: Slimp) -> None:
    ended = slimp("--help")
    assert ended.code == 0
    assert [verb for verb in verbs.ALL if f" {verb} " not in ended.out] == []
    assert "not a medical device" in " ".join(ended.out.split())


@pytest.mark.parametrize("verb", verbs.ALL)
def test_every_verb_explains_itself(slimp: Slimp, verb: str) -> None:
    ended = slimp(verb, "--help")
    assert ended.code == 0
    assert str(verbs.ALL[verb].__doc__).split(":")[0].split(";")[0][:40] in ended.out


@pytest.mark.parametrize("verb", [v for v in verbs.ALL if v != "serve"])
def test_a_verb_without_its_arguments_is_a_usage_error(slimp: Slimp, verb: str) -> None:
    ended = slimp(verb)
    assert (ended.code, ended.out) == (2, "")
    assert "Missing" in ended.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["teleport"],
        ["export", "run", "--out", "out", "--fast"],
        ["evaluate", "run", "cohort", "--out", "out", "--split", "tset"],
        ["prepare", "synthetic", "--out", "out", "--patients", "0"],
        ["prepare", "synthetic", "--out", "out", "--split-seed", "one"],
        ["serve", "--port", "http"],
    ],
)
def test_what_no_verb_knows_is_a_usage_error(slimp: Slimp, arguments: list[str]) -> None:
    ended = slimp(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert not Path("out").exists()


@pytest.mark.parametrize("verb", ARGUMENTS)
def test_a_verb_that_cannot_do_its_work_says_so_in_one_line_and_leaves_nothing(
    slimp: Slimp, verb: str, tmp_path: Path
) -> None:
    ended = slimp(verb, *ARGUMENTS[verb])
    assert_failed(ended)
    assert "absent" in ended.err or "SLIMP_PORT" in ended.err
    assert list(tmp_path.iterdir()) == []


def test_a_failure_of_the_machine_is_one_line_too(slimp: Slimp, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = slimp("prepare", "synthetic", "--patients", "1", "--out", "file/cohort")
    assert_failed(ended, "File exists", "file")


def test_a_missing_dependency_is_named_with_what_brings_it(
    slimp: Slimp, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Python's own way to say that a module is not there.
    monkeypatch.setitem(sys.modules, "export.pack", None)
    assert_failed(slimp("export", "run", "--out", "out"), "export.pack", "slimp[train]")


def test_an_interrupted_verb_ends_as_a_shell_expects(
    slimp: Slimp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(settings: Settings) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(service.server, "serve", interrupted)
    assert slimp("serve").code == 130


def test_the_package_runs_as_a_module_as_launchers_start_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["slimp", "train", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("slimp", run_name="__main__")
    assert ended.value.code == 0
    assert "Pre-train SLIMP encoders" in capsys.readouterr().out


def test_prepare_names_every_data_set_in_its_help_and_in_its_refusal(slimp: Slimp) -> None:
    said = slimp("prepare", "--help").out
    assert [name for name in NAMES if name not in said] == []
    assert_failed(slimp("prepare", "ham1000", "x", "--out", "out"), "nearest", *NAMES)


def test_prepare_draws_the_patients_and_the_seed_that_are_asked_for(slimp: Slimp) -> None:
    for out, seed in (("a", 3), ("b", 3), ("c", 4)):
        arguments = ("--patients", 2, "--seed", seed, "--split-seed", 5, "--out", out)
        ended = slimp("prepare", "synthetic", *arguments)
        assert ended.code == 0
        assert f"{out}: " in ended.last_line
    cohorts = [Cohort.open(Path(out)) for out in "abc"]
    assert [c.info.counts.patients for c in cohorts] == [2, 2, 2]
    assert cohorts[0].info.split_seed == 5
    first, again, other = (c.images(range(3)) for c in cohorts)
    assert first == again != other


def test_prepare_gives_the_reader_its_options_and_takes_labels_away(
    slimp: Slimp, tmp_path: Path
) -> None:
    drawn = ("prepare", "synthetic", "--patients", 2, "--out", tmp_path / "out")
    taken = ("--without-label", "melanoma", "--without-label", "nevus")
    assert slimp(*drawn, *taken).code == 0
    labels = Cohort.open(tmp_path / "out").info.labels
    assert labels
    assert not {"melanoma", "nevus"} & set(labels)
    assert_failed(slimp(*drawn, "--set", "patient=3"), "unknown option 'patient'", "patients")
    assert_failed(slimp(*drawn, "--set", "measured"), "NAME=VALUE")


def test_prepare_draws_as_the_demo_does_where_nothing_is_asked(slimp: Slimp) -> None:
    assert slimp("prepare", "synthetic", "--patients", 1, "--out", "out").code == 0
    (note,) = Cohort.open(Path("out")).info.notes
    assert f"seed {DEMO_SETTINGS['seed']}, 1 patients" in note


def test_prepare_refuses_options_that_a_data_set_does_not_have(
    slimp: Slimp, tmp_path: Path
) -> None:
    for options, words in (
        (["table", tmp_path], ["table: expected the option 'schema'"]),
        (["table", tmp_path, "--schema", "f.toml", "--seed", 1], ["unknown option 'seed'"]),
        (["ham10000", tmp_path, "--patients", 3], ["unknown option 'patients'"]),
        (["synthetic", tmp_path], ["synthetic: expected no path"]),
    ):
        assert_failed(slimp("prepare", *options, "--out", "out"), *words)


def test_train_names_the_key_that_a_configuration_does_not_have(slimp: Slimp) -> None:
    write_cohort(Path("cohort"))
    Path("c.toml").write_text("[image]\nsizepx = 3\n")
    ended = slimp("train", "cohort", "--config", "c.toml", "--out", "run")
    assert_failed(ended, "c.toml", "image.sizepx")


def test_index_takes_the_splits_that_are_named(slimp: Slimp) -> None:
    table = write_cohort(Path("cohort")).table().to_pydict()
    bundle = write_bundle(Path("bundle"))
    given = ("--split", "val", "--split", "test")
    ended = slimp("index", "bundle", "cohort", "--out", "catalogue", *given)
    assert ended.code == 0
    lesions = {
        lesion
        for lesion, split in zip(table["lesion_id"], table["split"], strict=True)
        if split in ("val", "test")
    }
    with Catalogue.open(
        Path("catalogue"), bundle_id=bundle.manifest.bundle_id, variant="fp32"
    ) as catalogue:
        assert len(catalogue) == len(lesions)
        assert {catalogue.lesion(lesion).lesion_id for lesion in lesions} == lesions
    assert ended.last_line.startswith(f"catalogue: {len(lesions)} lesions, ")
    ended = slimp("index", "bundle", "cohort", "--out", "other", "--split", "tests")
    assert_failed(ended, "expected splits among train", "'tests'")


def test_predict_reads_metadata_and_catalogue_and_tells_what_it_left_out(
    slimp: Slimp, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    old = [make_lesion(f"{n}", seed=n, record={"age_years": 90.0}) for n in range(100, 105)]
    write_catalogue(tmp_path / "known", old, bundle_id=bundle.manifest.bundle_id).close()
    (tmp_path / "images").mkdir()
    for name, content in (("red", draw_image(RED)), ("green", draw_image(GREEN)), ("bad", b"")):
        (tmp_path / f"images/{name}.png").write_bytes(content)
    (tmp_path / "m.csv").write_text("image,age\n" + "".join(f"{n}.png,20\n" for n in range(7)))
    with (tmp_path / "m.csv").open("a") as file:
        file.write("green.png,20\n")

    ended = slimp("predict", "bundle", "images", "--out", "plain.csv")
    assert ended.code == 3
    assert "plain.csv.refused.csv: the files that were refused, and why\n" in ended.out
    assert ended.last_line == "plain.csv: 2 answered, 1 refused (see `error`)"
    assert [row["file"] for row in read_rows(tmp_path / "plain.csv.refused.csv")] == [
        "images/bad.png"
    ]
    given = ("--metadata", "m.csv", "--catalogue", "known")
    ended = slimp("predict", "bundle", "images", *given, "--out", "told.csv")
    assert ended.code == 3
    assert ended.out.splitlines()[-2:] == [
        "m.csv: lines about no image among these: 7 (0.png, 1.png, 2.png, 3.png, 4.png, ...)",
        "m.csv: images without a line, answered as missing: 2 (bad.png, red.png)",
    ]
    told, plain = (read_rows(tmp_path / name) for name in ("told.csv", "plain.csv"))
    assert [row["status"] for row in told] == ["refused", "answered", "answered"]
    # Green's own age of 20 lowers melanoma; red's like are 90 years old, which raises it.
    assert float(told[1]["p_mel"]) < float(plain[1]["p_mel"])
    assert float(told[2]["p_mel"]) > float(plain[2]["p_mel"])


def test_predict_ends_well_where_every_file_is_answered(slimp: Slimp, tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle")
    (tmp_path / "red.png").write_bytes(draw_image(RED))
    assert slimp("predict", "bundle", "red.png", "--out", "plain.csv").code == 0
    assert slimp("predict", "bundle", "red.png", "--out", "plain.parquet").code == 0
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"bundle", "red.png", "plain.csv", "plain.parquet"}


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_predict_refuses_wrong_metadata_in_one_line(slimp: Slimp, tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle")
    (tmp_path / "a.png").write_bytes(draw_image())
    (tmp_path / "m.csv").write_text("image,agee\na.png,3\n")
    ended = slimp("predict", "bundle", "a.png", "--metadata", "m.csv", "--out", "out.csv")
    assert_failed(ended, "metadata of a.png: unknown field 'agee'; nearest is 'age_years'")
    assert not (tmp_path / "out.csv").exists()


def test_serve_takes_its_arguments_before_the_environment(
    slimp: Slimp, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Settings] = []
    monkeypatch.setattr(service.server, "serve", served.append)
    monkeypatch.setenv("SLIMP_CATALOGUE", "from-environment")
    monkeypatch.setenv("SLIMP_PORT", "9000")
    assert slimp("serve", "bundle", "--port", 9001).code == 0
    (settings,) = served
    assert (settings.bundle, settings.catalogue) == (Path("bundle"), Path("from-environment"))
    assert (settings.host, settings.port) == ("127.0.0.1", 9001)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("SLIMP_PROT", "80", ["SLIMP_PROT: no such setting; the nearest is SLIMP_PORT"]),
        ("SLIMP_PREVALENCE", "2", ["SLIMP_PREVALENCE", "less than 1", "'2'"]),
        ("SLIMP_MAX_K", "many", ["SLIMP_MAX_K", "integer", "'many'"]),
    ],
)
def test_serve_refuses_a_setting_that_is_unknown_or_out_of_bounds(
    slimp: Slimp, monkeypatch: pytest.MonkeyPatch, key: str, value: str, words: list[str]
) -> None:
    monkeypatch.setenv(key, value)
    assert_failed(slimp("serve"), *words)


def test_demo_refuses_a_folder_in_which_it_ran_before(slimp: Slimp, tmp_path: Path) -> None:
    taken = tmp_path / "demo/cohort/cohort.json"
    taken.parent.mkdir(parents=True)
    taken.write_text(json.dumps({}))
    ended = slimp("demo", "--out", "demo")
    assert_failed(ended, "demo/cohort exists")
    assert taken.read_text() == "{}"
