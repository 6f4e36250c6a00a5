"""The page in a real browser: what a clinician sees, by mouse, keyboard and on a telephone."""

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect, sync_playwright

from service.app import create_app
from service.models import Models
from service.runtime import Runtime
from service.settings import Settings
from tests.fakes import (
    BLUE,
    GREEN,
    RED,
    FakeEncoders,
    draw_image,
    make_calibration,
    make_lesion,
    make_manifest,
    make_novelty,
    write_catalogue,
)

pytestmark = pytest.mark.slow
WAIT_S = 10


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service on fakes, on a port of the system's choice."""
    record = {"anatom_site": "back", "diameter_mm": 4.0, "age_years": 30.0}
    lesions = [
        make_lesion(f"{name}-{number}", colour, seed=100 + number, record=record)
        for name, colour in (("red", RED), ("green", GREEN), ("blue", BLUE))
        for number in range(4)
    ]
    models = Models(make_manifest(), make_calibration(), FakeEncoders(), make_novelty())
    with write_catalogue(tmp_path_factory.mktemp("site") / "catalogue", lesions) as catalogue:
        app = create_app(Settings(log_level="error"), Runtime(models, catalogue))
        config = uvicorn.Config(app, port=0, log_level="error", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        (listener,) = server.servers[0].sockets
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(WAIT_S)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium where there is one, else Playwright's own."""
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu"]
        opened = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=options)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page, ready; a script error or a breach of the page's policy fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on(
        "console",
        lambda said: complaints.append(said.text) if "Content Security" in said.text else None,
    )
    opened.goto(address)
    expect(opened.locator("body[data-ready]")).to_be_attached()
    yield opened
    context.close()
    assert complaints == []


@pytest.fixture
def picture(tmp_path: Path) -> dict[str, str]:
    """Files to choose, by name."""
    drawn = {
        "red": draw_image(RED),
        "red2": draw_image(RED, seed=2),
        "blue": draw_image(BLUE),
        "flat": draw_image(RED, grain=0),
    }
    for name, data in drawn.items():
        (tmp_path / f"{name}.png").write_bytes(data)
    return {name: str(tmp_path / f"{name}.png") for name in drawn}


def test_a_lesion_is_assessed_with_its_grounds(page: Page, picture: dict[str, str]) -> None:
    panel = page.locator("#panel-lesion")
    button = panel.get_by_role("button", name="Assess lesion")
    expect(button).to_be_disabled()
    panel.locator("input[type=file]").set_input_files(picture["red"])
    panel.get_by_role("spinbutton", name="Age").fill("55")
    button.click()
    expect(panel.get_by_role("heading", name="Most likely: nv")).to_be_visible()
    expect(panel.locator(".bars li")).to_have_count(3)
    expect(panel.locator(".hits li")).to_have_count(8)
    row = panel.get_by_role("row", name="Anatom site")
    expect(row).to_contain_text("guessed")
    expect(row).to_contain_text("similar lesions")
    expect(panel.get_by_role("row", name="Age")).to_contain_text("given")
    expect(page.get_by_text("Not a medical device")).to_be_visible()


def test_an_image_that_cannot_be_assessed_gets_no_figure(
    page: Page, picture: dict[str, str]
) -> None:
    panel = page.locator("#panel-lesion")
    panel.locator("input[type=file]").set_input_files(picture["flat"])
    panel.get_by_role("button", name="Assess lesion").click()
    expect(panel.get_by_text("Not assessable")).to_be_visible()
    expect(panel.get_by_text("the image is blurred")).to_be_visible()
    expect(panel.locator(".figure")).to_have_count(0)


def test_a_refused_value_is_shown_at_its_field(page: Page, picture: dict[str, str]) -> None:
    panel = page.locator("#panel-lesion")
    panel.locator("input[type=file]").set_input_files(picture["red"])
    panel.get_by_role("spinbutton", name="Age").fill("555")
    panel.get_by_role("button", name="Assess lesion").click()
    expect(panel.get_by_role("alert").filter(has_text="out_of_range")).to_be_visible()
    expect(panel.get_by_role("spinbutton", name="Age")).to_have_attribute("aria-invalid", "true")
    expect(panel.get_by_role("spinbutton", name="Age")).to_be_focused()


def test_a_patients_lesions_are_ranked_by_keyboard_alone(
    page: Page, picture: dict[str, str]
) -> None:
    page.get_by_role("tab", name="One lesion").focus()
    page.keyboard.press("ArrowRight")
    panel = page.locator("#panel-patient")
    expect(panel).to_be_visible()
    images = [picture[name] for name in ("red", "red2", "blue", "flat")]
    panel.locator("input[type=file]").set_input_files(images)
    panel.get_by_role("button", name="Compare lesions").focus()
    page.keyboard.press("Enter")
    rows = panel.locator(".ranking tbody tr")
    expect(rows).to_have_count(4)
    expect(rows.first).to_contain_text("Lesion 3")
    expect(rows.first).to_contain_text("rank 1")
    expect(rows.last).to_contain_text("not assessable")
    expect(panel.get_by_text("3 of 4 lesions could be used")).to_be_visible()


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_runs_over_the_edge(page: Page, picture: dict[str, str], width: int) -> None:
    page.set_viewport_size({"width": width, "height": 740})
    panel = page.locator("#panel-lesion")
    panel.locator("input[type=file]").set_input_files(picture["red"])
    panel.get_by_role("button", name="Assess lesion").click()
    expect(panel.locator(".hits li").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.goto(page.url + "docs")
    expect(page.get_by_role("heading", name="POST /classify")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
