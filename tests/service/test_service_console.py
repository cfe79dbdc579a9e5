"""The console in a real browser, against the real service over HTTP."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from patience import until
from playwright.sync_api import Browser, Page, expect, sync_playwright
from service_kit import LocalService, event, service_config

from hymirec.service.page import PARTS

pytestmark = pytest.mark.browser
MARIE = "marie & co/é"


@pytest.fixture(scope="module")
def url(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The service on a port of its own; `MARIE` has a history of twelve items."""
    directory = tmp_path_factory.mktemp("console")
    service = LocalService(service_config(bundle, directory), directory)
    catalog = service.ranker._model.bundle.catalog
    service.post(*(event(i, MARIE, str(catalog.item_id(i))) for i in range(12)))
    until(lambda: len(service.run(service.writer.snapshot(MARIE)).history) == 12)
    yield service.listen()
    service.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, url: str, tmp_path: Path) -> Iterator[Page]:
    """A page that fails the test for anything that its console says."""
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(url)
    yield page
    page.screenshot(path=tmp_path / "end.png", full_page=True)
    page.close()
    assert said == []


def pick(page: Page, user: str) -> None:
    page.get_by_label("User id").fill(user)
    page.get_by_role("button", name="Show").click()


def recommended(page: Page) -> list[str]:
    return [str(button.get_attribute("data-item")) for button in page.locator("#interests button").all()]


def test_a_click_on_an_item_moves_the_list_and_shows_how_long_it_took(page: Page) -> None:
    pick(page, MARIE)
    expect(page.locator("#history li")).to_have_count(12)
    expect(page.locator("#interests h3")).to_have_text(["Interest 1", "Interest 2"])
    assert page.locator("#map circle").count() >= 12 + 2
    before = recommended(page)
    chosen = before[2]
    title = page.locator(f'#interests button[data-item="{chosen}"]').inner_text().split("\n")[0]
    page.locator(f'#interests button[data-item="{chosen}"]').click()
    expect(page.get_by_role("status")).to_have_text(re.compile(r"visible in the answer after \d+ ms"))
    expect(page.locator("#history li")).to_have_count(13)
    assert title in page.locator("#history li").first.inner_text()
    after = recommended(page)
    # What was seen is not recommended again.
    assert chosen not in after
    assert after != [item for item in before if item != chosen]
    expect(page.locator("#health-status")).to_have_text("well")
    assert len(page.locator("#health-bundle").inner_text()) == 12


def shown(page: Page, url: str, per_interest: int) -> list[list[str]]:
    """Wait until the columns of Marie's two interests hold the titles that the service names; return these."""
    body = {"user_id": MARIE, "k": 30, "per_interest": per_interest}
    items = page.request.post(f"{url}/v1/explain", data=body).json()["items"]
    columns = [[item["title"] for item in items if item["interest"] == number] for number in range(2)]
    for number, titles in enumerate(columns):
        expect(page.locator("#interests .interest").nth(number).locator("button")).to_contain_text(titles)
    return columns


def test_each_interest_chooses_when_it_is_asked_to(page: Page, url: str) -> None:
    pick(page, MARIE)
    best = shown(page, url, 0)
    page.get_by_label("Each interest chooses five items first").check()
    chosen = shown(page, url, 5)
    assert min(map(len, chosen)) >= 5
    assert chosen != best
    page.get_by_label("Each interest chooses five items first").uncheck()
    assert shown(page, url, 0) == best


def test_what_if_asks_with_a_list_and_stores_nothing(page: Page) -> None:
    page.get_by_role("button", name="What if").click()
    expect(page.locator("#interests h3")).to_have_text(["Popular now"])
    for _ in range(2):
        page.locator("#interests button").first.click()
        expect(page.get_by_role("status")).to_have_text(re.compile("is in the list"))
        expect(page.locator("#interests h3").first).to_have_text("Interest 1")
    expect(page.locator("#history li")).to_have_count(2)
    page.get_by_role("button", name="A user").click()
    pick(page, "somebody new")
    expect(page.locator("#history li")).to_have_count(0)


def test_items_are_found_by_words_of_their_titles(page: Page) -> None:
    pick(page, MARIE)
    title = page.locator("#history li").first.inner_text().split("\n")[0]
    page.get_by_label("Find items").fill(title)
    page.get_by_label("Find items").press("Enter")
    expect(page.locator("#found button").first).to_contain_text(title)
    page.get_by_label("Find items").fill("no title has these words")
    page.get_by_role("button", name="Find").click()
    expect(page.get_by_role("status")).to_have_text("0 items found")


def test_the_keyboard_is_enough(page: Page) -> None:
    page.get_by_label("User id").focus()
    page.keyboard.type("by keyboard")
    page.keyboard.press("Enter")
    expect(page.locator("#interests button").first).to_be_visible()
    end = time.monotonic() + 20
    while page.evaluate("document.activeElement.closest('#interests') === null"):
        page.keyboard.press("Tab")
        assert time.monotonic() < end
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text(re.compile(r"visible in the answer after \d+ ms"))
    assert page.evaluate("document.activeElement.closest('#interests') !== null")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 900), (360, 740)], ids=["desk", "phone"])
def test_axe_finds_nothing_serious_and_nothing_overflows(
    page: Page, tmp_path: Path, scheme: str, size: tuple[int, int]
) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    pick(page, MARIE)
    expect(page.locator("#history li").first).to_be_visible()
    found = Axe().run(page).response["violations"]
    assert [(one["id"], one["impact"], one["nodes"][0]["html"]) for one in found] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_the_page_needs_no_token_and_its_data_do(bundle: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("read reads-and-nothing-else\n")
    tokens.chmod(0o600)
    service = LocalService(service_config(bundle, tmp_path, token_file=str(tokens)), tmp_path)
    try:
        for part in ("", *PARTS):
            assert service.call("GET", f"/console/{part}").status_code == 200
        assert service.call("GET", "/console/../v1/items?q=a").status_code == 401
        assert service.call("GET", "/console/none").status_code == 404
        assert service.call("POST", "/v1/explain", json={"history": []}).status_code == 401
        policy = service.call("GET", "/console/").headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert service.call("GET", "/").headers["location"] == "./console/"
    finally:
        service.close()
