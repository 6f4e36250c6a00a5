"""The page in a real browser: what a clinician sees, by mouse, keyboard and on a telephone."""

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from service.access.callers import Scope
from service.app import create_app
from service.ledger.database import open_ledger
from service.ledger.keys import ApiKeys
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
from tests.service.test_connections import serving as draining
from tests.service.test_scheduling import wait_for

pytestmark = pytest.mark.slow
WAIT_S = 10


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """Fakes, and a catalogue of twelve lesions."""
    record = {"anatom_site": "back", "diameter_mm": 4.0, "age_years": 30.0}
    lesions = [
        make_lesion(f"{name}-{number}", colour, seed=100 + number, record=record)
        for name, colour in (("red", RED), ("green", GREEN), ("blue", BLUE))
        for number in range(4)
    ]
    models = Models(make_manifest(), make_calibration(), FakeEncoders(), make_novelty())
    with write_catalogue(tmp_path_factory.mktemp("site") / "catalogue", lesions) as catalogue:
        yield Runtime(models, catalogue)


@contextmanager
def serving(settings: Settings, runtime: Runtime) -> Iterator[str]:
    """Serve on a port of the system's choice."""
    config = uvicorn.Config(create_app(settings, runtime), port=0, log_level="error", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    (listener,) = server.servers[0].sockets
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(WAIT_S)


@pytest.fixture(scope="module")
def address(runtime: Runtime) -> Iterator[str]:
    with serving(Settings(log_level="error"), runtime) as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium where there is one, else Playwright's own."""
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu"]
        opened = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=options)
        yield opened
        opened.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Page]:
    """A tab; a script error or a breach of the page's policy fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on(
        "console",
        lambda said: complaints.append(said.text) if "Content Security" in said.text else None,
    )
    yield opened
    context.close()
    assert complaints == []


@pytest.fixture
def page(opened: Page, address: str) -> Page:
    """The page, ready."""
    opened.goto(address)
    expect(opened.locator("body[data-ready]")).to_be_attached()
    return opened


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


@pytest.mark.parametrize("change", ["image", "value", "removal"])
def test_an_answer_goes_when_what_it_was_made_from_changes(
    page: Page, picture: dict[str, str], change: str
) -> None:
    panel = page.locator("#panel-lesion")
    panel.locator("input[type=file]").set_input_files(picture["red"])
    panel.get_by_role("button", name="Assess lesion").click()
    expect(panel.locator(".figure")).to_have_count(1)
    if change == "image":
        panel.locator("input[type=file]").set_input_files(picture["blue"])
    elif change == "value":
        panel.get_by_role("spinbutton", name="Age").fill("55")
    else:
        panel.get_by_role("button", name="Remove image 1").click()
    expect(panel.locator(".figure")).to_have_count(0)
    expect(panel.get_by_role("heading", name="Most likely")).to_have_count(0)


def test_an_answer_on_its_way_is_not_shown_beside_another_image(
    page: Page, picture: dict[str, str]
) -> None:
    held: list[Route] = []
    page.route("**/classify", lambda route: held.append(route))
    panel = page.locator("#panel-lesion")
    panel.locator("input[type=file]").set_input_files(picture["red"])
    with page.expect_request("**/classify"):
        panel.get_by_role("button", name="Assess lesion").click()
    panel.get_by_role("button", name="Remove image 1").click()
    panel.locator("input[type=file]").set_input_files(picture["blue"])
    with page.expect_response("**/classify"):
        held[0].continue_()
    page.unroute("**/classify")
    expect(panel.get_by_role("button", name="Assess lesion")).to_be_enabled()
    expect(panel.locator(".figure")).to_have_count(0)
    panel.get_by_role("button", name="Assess lesion").click()
    expect(panel.get_by_role("heading", name="Most likely: bcc")).to_be_visible()


def test_an_answer_of_another_model_is_not_read_by_what_this_one_said(
    page: Page, picture: dict[str, str], runtime: Runtime
) -> None:
    said = runtime.classify([draw_image(RED)]).model_dump(mode="json")
    other = {**said, "bundle_id": "0" * 64, "request_id": "1" * 32}
    page.route("**/classify", lambda route: route.fulfill(json=other))
    panel = page.locator("#panel-lesion")
    panel.locator("input[type=file]").set_input_files(picture["red"])
    panel.get_by_role("button", name="Assess lesion").click()
    expect(panel.get_by_role("alert").filter(has_text="another model")).to_be_visible()
    expect(panel.locator(".figure")).to_have_count(0)


def test_malignancy_is_said_in_a_word_and_of_hits_as_the_catalogue_knows_it(
    page: Page, picture: dict[str, str], runtime: Runtime
) -> None:
    said = runtime.similar([draw_image(RED)], k=8).model_dump(mode="json")
    said["hits"][0] |= {"label": "merkel_cell", "malignant": True}
    page.route("**/similar", lambda route: route.fulfill(json=said))
    panel = page.locator("#panel-lesion")
    panel.locator("input[type=file]").set_input_files(picture["red"])
    panel.get_by_role("button", name="Assess lesion").click()
    expect(panel.locator(".hits li").first).to_contain_text("merkel cell")
    expect(panel.locator(".hits li").first).to_contain_text("malignant")
    expect(panel.locator(".hits li").nth(1)).not_to_contain_text("malignant")
    expect(panel.locator(".bars li.malignant")).to_have_count(2)
    expect(panel.locator(".bars li.malignant").first).to_contain_text("malignant")


def test_a_patients_figure_says_of_what_it_is_and_a_mistake_which_lesions(
    page: Page, picture: dict[str, str]
) -> None:
    page.get_by_role("tab", name="lesions").click()
    panel = page.locator("#panel-patient")
    panel.locator("input[type=file]").set_input_files([picture["red"], picture["blue"]])
    second = panel.locator(".lesion-list > li").nth(1)
    second.get_by_text("What is known of it").click()
    second.get_by_role("spinbutton", name="Diameter").fill("-3")
    panel.get_by_role("button", name="Compare lesions").click()
    expect(second.get_by_role("spinbutton", name="Diameter")).to_be_focused()
    expect(panel.get_by_role("alert").filter(has_text="Lesion 2")).to_be_visible()
    second.get_by_role("spinbutton", name="Diameter").fill("3")
    panel.get_by_role("button", name="Compare lesions").click()
    expect(panel.get_by_text("of the 2 that were sent and could be judged")).to_be_visible()
    expect(panel.get_by_text("taken as independent")).to_be_visible()
    expect(panel.locator(".ranking")).to_contain_text("guessed: ")
    panel.locator("input[type=file]").set_input_files(picture["red"])
    panel.get_by_role("button", name="Compare lesions").click()
    expect(panel.get_by_role("alert").filter(has_text="the same picture")).to_be_visible()


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


def test_a_key_is_asked_for_kept_in_the_tab_and_sent_with_everything(
    opened: Page, runtime: Runtime, tmp_path: Path, picture: dict[str, str]
) -> None:
    engine = open_ledger(tmp_path / "ledger")
    key, _ = ApiKeys(engine).create(label="page", scope=Scope.READ)
    engine.dispose()
    settings = Settings(auth="on", ledger=tmp_path / "ledger", log_level="error")
    addresses: list[str] = []
    opened.on("request", lambda request: addresses.append(request.url))
    with serving(settings, runtime) as address:
        opened.goto(address)
        form = opened.locator("#key")
        form.get_by_label("Key").fill("slimp_wrong")
        form.get_by_role("button", name="Use key").click()
        expect(form.get_by_text("this is no key of this service")).to_be_visible()
        form.get_by_label("Key").fill(key)
        form.get_by_role("button", name="Use key").click()
        expect(opened.locator("body[data-ready]")).to_be_attached()
        expect(form).to_be_hidden()
        panel = opened.locator("#panel-lesion")
        panel.locator("input[type=file]").set_input_files(picture["red"])
        panel.get_by_role("button", name="Assess lesion").click()
        expect(panel.locator(".hits li")).to_have_count(8)
        for position in range(8):
            image = panel.locator(".hits img").nth(position)
            expect(image).not_to_have_js_property("naturalWidth", 0)
        opened.get_by_role("link", name="Interface documentation").click()
        expect(opened.get_by_role("heading", name="POST /classify")).to_be_visible()
        expect(opened.get_by_text("Bearer $SLIMP_KEY").first).to_be_visible()
        opened.go_back()
        expect(opened.locator("body[data-ready]")).to_be_attached()
        opened.get_by_role("link", name="About the model").click()
        expect(opened.locator("body")).to_contain_text("intended_use")
        opened.go_back()
        opened.get_by_role("button", name="Forget key").click()
        expect(form).to_be_visible()
    assert len(addresses) > 10
    assert not [url for url in addresses if key in url]


def test_a_browser_that_is_turned_away_before_its_upload_is_read_shows_why(
    opened: Page, runtime: Runtime, tmp_path: Path
) -> None:
    """The only place is held by one that sends slowly; the picture is of a telephone's size."""
    noise = np.random.default_rng(0).integers(0, 255, (1500, 2000, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size > 5_000_000
    app = create_app(Settings(log_level="error", max_concurrency=1, max_queue=0), runtime)
    scheduler = app.state.service.scheduler
    with draining(app) as (_, port):
        opened.goto(f"http://127.0.0.1:{port}")
        expect(opened.locator("body[data-ready]")).to_be_attached()
        panel = opened.locator("#panel-lesion")
        panel.locator("input[type=file]").set_input_files(tmp_path / "large.png")
        button = panel.get_by_role("button", name="Assess lesion")
        with socket.create_connection(("127.0.0.1", port)) as slow:
            head = "POST /embed HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n"
            slow.sendall(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode())
            wait_for(lambda: scheduler.admitted == 1)
            button.click()
            refused = panel.get_by_role("alert").filter(has_text="expected at most 1 requests")
            expect(refused).to_be_visible()
        wait_for(lambda: scheduler.admitted == 0)
        button.click()
        expect(refused).to_be_hidden()
        expect(panel.get_by_role("heading").first).to_be_visible()


def test_a_service_that_lets_everybody_in_says_so(opened: Page, runtime: Runtime) -> None:
    with serving(Settings(auth="off", log_level="error"), runtime) as address:
        opened.goto(address)
        expect(opened.get_by_text("access control is off")).to_be_visible()
