"""What the command says while it works, on a terminal and elsewhere."""

import io

import pytest
from rich.console import Console

from slimp import console
from slimp.console import progress, say


def test_elsewhere_than_on_a_terminal_progress_is_plain_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress() as report:
        report("embed", 1, 3)
        report("embed", 2, 3)
        report("embed", 3, 3, "all")
        report("export", 1, 2, "first")
    assert capsys.readouterr().out == ("embed: 1 of 3\nembed: 3 of 3  all\nexport: 1 of 2  first\n")


def test_work_of_unknown_length_says_how_far_it_is_and_no_more_than_now_and_then(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress() as report:
        for rows in range(100, 1000, 100):
            report("rows read", rows, None)
    assert capsys.readouterr().out == "rows read: 100\n"


def test_a_long_stage_is_heard_of_again_after_a_while(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "QUIET_SECONDS", -1.0)
    with progress() as report:
        report("embed", 1, 3)
        report("embed", 2, 3)
    assert capsys.readouterr().out == "embed: 1 of 3\nembed: 2 of 3\n"


def test_on_a_terminal_progress_is_a_bar_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr(console, "out", terminal)
    with progress() as report:
        report("embed", 1, 4)
        report("embed", 4, 4, "all")
        report("rows read", 7, None)
    lines = screen.getvalue().splitlines()
    embed, rows = ([x for x in lines if stage in x][-1] for stage in ("embed", "rows read"))
    assert "4/4" in embed
    assert embed.rstrip().endswith("all")
    assert "7/?" in rows


@pytest.mark.parametrize("text", ["/data/[bold]/:heart:/x.csv", "a" * 300, "[/]", "3 of 4"])
def test_text_is_said_as_it_is(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(text)
    assert capsys.readouterr().out == text + "\n"
