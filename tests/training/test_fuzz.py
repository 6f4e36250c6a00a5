"""A run's files and its configuration, damaged at random: read, or refused by an error of ours."""

import contextlib
import json
from pathlib import Path
from typing import Any

from hypothesis import given

from bundle.errors import InvalidSettings, TrainingError
from tests.fuzzing import altered, damaged, damaged_json, fuzzed
from training.config import Config, read_config
from training.run import SEEN_LIST, SeenGroups, read_run_config, read_seen

DEMO = (Path(__file__).parents[2] / "configs" / "demo.toml").read_bytes()
SEEN = SEEN_LIST.dump_json((SeenGroups.of({"a", "b"}), SeenGroups.of({"c"})))
CONFIG = Config().model_dump(mode="json")


@fuzzed
@given(damaged(DEMO))
def test_a_damaged_configuration_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with contextlib.suppress(InvalidSettings):
        assert read_config(path).sha256()


@fuzzed
@given(altered(CONFIG))
def test_an_altered_configuration_of_a_run_is_read_as_it_says_or_refused(
    tmp_path: Path, content: Any
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    with contextlib.suppress(TrainingError):
        read = read_run_config(tmp_path)
        assert Config.model_validate_json(read.model_dump_json()) == read


@fuzzed
@given(damaged_json(SEEN))
def test_damaged_groups_that_were_seen_are_read_as_they_say_or_refused(data: bytes) -> None:
    with contextlib.suppress(TrainingError):
        assert [one.model_dump(mode="json") for one in read_seen(data)] == json.loads(data)
