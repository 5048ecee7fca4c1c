"""The page in a headless Chromium: every control does what it says.

``WELM_SCREENSHOTS`` names a folder that gets pictures of it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Page, expect, sync_playwright

import welm

from conftest import with_template
from serving import Running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, ConsoleMessage, Request

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}，"
CHROMIUM = os.environ.get("WELM_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> welm.Model:
    return welm.Model(with_template(tmp_path_factory.mktemp("chat"), TEMPLATE), threads=1)


@pytest.fixture(scope="module")
def server(model: welm.Model) -> Iterator[Running]:
    with Running(model, model_names=("nano", "other")) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, server: Running) -> Iterator[Page]:
    """The page in English; the test fails if the page has an error, or asks another host for anything."""
    with opened(browser, server.url, locale="en-US") as page:
        yield page


class opened:
    def __init__(self, browser: Browser, url: str, **context: Any) -> None:
        self.url = url
        self.context = browser.new_context(**context)
        self.faults: list[str] = []

    def __enter__(self) -> Page:
        page = self.context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", self._read)
        page.on("request", self._look)
        page.goto(self.url + "/")
        page.locator("#model option, #problem:not([hidden])").first.wait_for(state="attached")
        return page

    def _read(self, message: ConsoleMessage) -> None:
        if not message.text.startswith("Failed to load resource: the server responded with a status of 40"):
            self.faults.append(message.text)

    def _look(self, request: Request) -> None:
        if not request.url.startswith((self.url, "data:")):
            self.faults.append(request.url)

    def __exit__(self, *_: object) -> None:
        self.context.close()
        assert not self.faults


def sent(page: Page, action: Callable[[], None]) -> list[dict[str, Any]]:
    """The bodies of requests that an action makes; it waits until their answers are shown."""
    bodies: list[dict[str, Any]] = []

    def look(request: Request) -> None:
        if request.method == "POST":
            bodies.append(request.post_data_json)

    page.on("request", look)
    action()
    expect(page.locator("#run")).to_be_enabled()
    page.remove_listener("request", look)
    return bodies


def picture(page: Page, name: str) -> None:
    if folder := os.environ.get("WELM_SCREENSHOTS"):
        page.mouse.move(0, 0) if name == "phone" else None
        page.screenshot(path=Path(folder) / f"{name}.png")


def test_continue(page: Page, model: welm.Model) -> None:
    page.fill("#prompt", "床前明月光，")
    page.fill("[data-field=temperature]", "0")
    (body,) = sent(page, lambda: page.click("#run"))
    want = model.generate("床前明月光，", temperature=0, max_tokens=64, logprobs=5)
    expect(page.locator(".output .text")).to_have_text("床前明月光，" + want.text)
    expect(page.locator(".output .given")).to_have_text("床前明月光，")
    assert (body["model"], body["max_tokens"], body["stream"], body["logprobs"]) == ("nano", 64, True, 5)
    figures = page.locator(".output .figures").inner_text()
    assert figures.startswith(f"{want.usage.completion_tokens} tokens, ")
    assert "tokens/s, first after " in figures
    # Rare tokens are coloured more.
    shares = [
        float(s.removesuffix("%"))
        for s in page.locator(".token").evaluate_all("t => t.map(e => e.style.getPropertyValue('--share'))")
    ]
    assert len(shares) == len([t for t in want.choices[0].tokens if t.bytes])
    first = want.choices[0].tokens[0]
    assert first.logprob is not None
    assert shares[0] == pytest.approx((1 - 2.718281828459045**first.logprob) * 70, abs=0.51)
    # Alternatives.
    page.hover(".token >> nth=0")
    rows = page.locator("#alternatives tr")
    expect(rows).to_have_count(5)
    expect(page.locator("#alternatives tr.taken td >> nth=0")).to_have_text(first.text)
    expect(rows.nth(0)).to_contain_text(" %")
    picture(page, "continue")
    page.mouse.move(0, 0)
    expect(page.locator("#alternatives")).to_be_hidden()
    page.focus(".token >> nth=2")  # by keyboard
    expect(page.locator("#alternatives")).to_be_visible()


def test_every_setting_is_sent(page: Page) -> None:
    page.fill("#prompt", "春")
    values = {
        "temperature": "0.5",
        "top_p": "0.8",
        "top_k": "30",
        "max_tokens": "7",
        "n": "3",
        "repetition_penalty": "1.2",
    }
    for name, value in values.items():
        page.fill(f"[data-field={name}]", value)
        expect(page.locator(f"[data-slider={name}]")).to_have_value(value)
    page.fill("[data-field=stops]", r"。|\n|，他")
    page.fill("[data-field=seedField]", "42")
    (body,) = sent(page, lambda: page.click("#run"))
    assert {name: body[name] for name in values} == {name: float(value) for name, value in values.items()}
    assert (body["stop"], body["seed"]) == (["。", "\n", "，他"], 42)
    expect(page.locator(".output")).to_have_count(3)
    texts = page.locator(".output .text").all_inner_texts()
    assert len(set(texts)) > 1
    sent(page, lambda: page.click("#run"))
    assert page.locator(".output .text").all_inner_texts() == texts  # the same seed
    # Sliders.
    page.locator("[data-slider=temperature]").fill("1.25")
    expect(page.locator("[data-field=temperature]")).to_have_value("1.25")
    page.select_option("#model", "other")
    (body,) = sent(page, lambda: page.press("#prompt", "Control+Enter"))
    assert (body["temperature"], body["model"]) == (1.25, "other")


@pytest.mark.parametrize("sample", ["weather", "cat", "question", "reading", "translation", "mixed"])
def test_samples(page: Page, sample: str) -> None:
    page.click(f"[data-sample={sample}]")
    prompt = page.input_value("#prompt")
    (body,) = sent(page, lambda: page.click("#run"))
    assert body["prompt"] == prompt
    assert (body["n"], body.get("stop")) == (
        5 if sample == "cat" else 1,
        None if sample == "weather" else body["stop"],
    )
    texts = page.locator(".output .text").all_inner_texts()
    assert len(texts) == body["n"]
    for text in texts:
        assert text.startswith(prompt)
        assert not any(stop in text[len(prompt) :] for stop in body.get("stop", []))


def test_stopping(page: Page, model: welm.Model) -> None:
    page.fill("#prompt", "春")
    for name, value in (
        ("max_tokens", "480"),
        ("n", "8"),
        ("temperature", "2"),
        ("top_k", "0"),
        ("top_p", "1"),
    ):
        page.fill(f"[data-field={name}]", value)
    # Other requests keep the model busy, so that it has not ended when the browser clicks.
    others = [model.stream("夏", max_tokens=480, n=24, ignore_eos=True) for _ in range(2)]
    page.click("#run")
    expect(page.locator("#run")).to_be_disabled()
    page.wait_for_selector(".token")
    page.click("#stop")
    expect(page.locator("#run")).to_be_enabled()
    expect(page.locator("#stop")).to_be_disabled()
    expect(page.locator(".figures").first).to_contain_text("stopped")
    for other in others:
        other.cancel()
    page.wait_for_timeout(300)
    assert model.stats().open == 0
    page.click("#clear")
    expect(page.locator(".output")).to_have_count(0)
    expect(page.locator("#prompt")).to_have_value("")


def test_chat(page: Page, model: welm.Model) -> None:
    page.click("#tab-chat")
    expect(page.locator("#samples")).to_be_hidden()
    expect(page.locator("[data-field=n]")).to_have_count(0)
    page.fill("[data-field=temperature]", "0")
    page.fill("[data-field=max_tokens]", "12")
    page.fill("#system", "作诗：")
    page.fill("#prompt", "床前明月光")
    (first,) = sent(page, lambda: page.press("#prompt", "Enter"))
    messages = [{"role": "system", "content": "作诗："}, {"role": "user", "content": "床前明月光"}]
    answer = model.generate(model.chat_tokens(messages), temperature=0, max_tokens=12).text
    assert first["messages"] == messages
    expect(page.locator(".message.assistant .text")).to_have_text(answer)
    expect(page.locator("#prompt")).to_have_value("")
    page.hover(".message.assistant .token >> nth=1")
    expect(page.locator("#alternatives tr")).to_have_count(5)
    page.fill("#prompt", "一行")
    page.press("#prompt", "Shift+Enter")  # a new line, and not sent
    expect(page.locator("#prompt")).to_have_value("一行\n")
    (second,) = sent(page, lambda: page.click("#run"))
    assert second["messages"] == [
        *messages,
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "一行\n"},
    ]
    expect(page.locator(".message")).to_have_count(4)
    picture(page, "chat")
    page.click("#clear")
    expect(page.locator(".message")).to_have_count(0)
    page.fill("#system", "")
    page.fill("#prompt", "春")
    (third,) = sent(page, lambda: page.click("#run"))
    assert third["messages"] == [{"role": "user", "content": "春"}]


def test_a_message_that_failed_is_kept(page: Page) -> None:
    page.click("#tab-chat")
    page.fill("#prompt", "春" * 600)
    page.click("#run")
    expect(page.locator("#problem")).to_contain_text("context")
    expect(page.locator(".message")).to_have_count(0)
    expect(page.locator("#prompt")).to_have_value("春" * 600)


def test_compare(page: Page) -> None:
    page.click("#tab-compare")
    page.click("[data-sample=mixed]")
    page.fill("[data-name=settingsA] [data-field=temperature]", "1.5")
    page.fill("[data-name=settingsA] [data-field=max_tokens]", "9")
    bodies = sent(page, lambda: page.click("#run"))
    assert sorted((body["temperature"], body["max_tokens"]) for body in bodies) == [(0, 48), (1.5, 9)]
    assert page.locator(".output h2").all_inner_texts() == ["Settings A", "Settings B"]
    picture(page, "compare")


def test_views_keep_their_texts(page: Page) -> None:
    for view in ("continue", "chat", "compare"):
        page.click(f"#tab-{view}")
        page.fill("#prompt", view)
    for view in ("continue", "chat", "compare"):
        page.click(f"#tab-{view}")
        expect(page.locator("#prompt")).to_have_value(view)
        expect(page.locator(f"#tab-{view}")).to_have_attribute("aria-selected", "true")


def test_languages_and_themes_are_remembered(browser: Browser, server: Running) -> None:
    with opened(browser, server.url, locale="zh-CN", color_scheme="dark") as page:
        expect(page.locator("#run")).to_have_text("续写")
        expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
        expect(page.locator("html")).to_have_attribute("data-theme", "dark")
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.click("#theme")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
        page.click("#language")
        expect(page.locator("#run")).to_have_text("Continue")
        page.reload()
        expect(page.locator("#run")).to_have_text("Continue")
        expect(page.locator("html")).to_have_attribute("data-theme", "light")


def test_both_languages_say_the_same_things(page: Page) -> None:
    shapes = page.evaluate(
        """async () => {
            const { TEXTS } = await import('./page/texts.js');
            const shape = (value) => typeof value === 'string' ? (value ? 1 : 0)
                : Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, shape(inner)]));
            return [shape(TEXTS.en), shape(TEXTS.zh)];
        }"""
    )
    assert shapes[0] == shapes[1]
    assert "0" not in str(shapes[0]).replace("'0'", "")


def test_characters_of_several_tokens_are_one(page: Page, model: welm.Model) -> None:
    """And no half of a character is shown."""
    assert len(model.tokenize("😀")) > 1
    told = page.evaluate(
        """async ([tokens, text]) => {
            const { Text, fromCompletion } = await import('./page/tokens.js');
            const place = document.createElement('div');
            const written = new Text(place);
            const seen = [];
            tokens.forEach((token, at) => {
                const top = { [token]: -0.1 };
                const logprobs = { tokens: [token], token_logprobs: [-0.1], top_logprobs: [top] };
                written.add(at === tokens.length - 1 ? text : '', fromCompletion(logprobs));
                seen.push(place.textContent);
            });
            written.end();
            return [seen, place.querySelectorAll('.token').length];
        }""",
        [
            [
                "bytes:" + "".join(f"\\x{byte:02x}" for byte in model.token_bytes(t))
                for t in model.tokenize("😀")
            ],
            "😀",
        ],
    )
    assert told == [["", *[""] * (len(model.tokenize("😀")) - 2), "😀"], 1]


def test_a_key_is_asked_for(browser: Browser, model: welm.Model) -> None:
    with (
        Running(model, keys={"sk-a": "alice"}) as server,
        opened(browser, server.url, locale="en-US") as page,
    ):
        expect(page.locator("#key-form")).to_be_visible()
        expect(page.locator("#problem")).to_contain_text("API key")
        page.fill("#key", "wrong")
        page.click("#key-form button")
        expect(page.locator("#key-form")).to_be_visible()
        page.fill("#key", "sk-a")
        page.press("#key", "Enter")
        expect(page.locator("#key-form")).to_be_hidden()
        page.fill("#prompt", "春")
        sent(page, lambda: page.click("#run"))
        expect(page.locator(".output .token").first).to_be_visible()


def test_on_a_phone_nothing_is_cut_off(browser: Browser, server: Running) -> None:
    phone = {"width": 360, "height": 640}
    with opened(browser, server.url, locale="zh-CN", viewport=phone, has_touch=True, is_mobile=True) as page:
        for view in ("continue", "compare", "chat"):
            page.tap(f"#tab-{view}")
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.tap("#tab-continue")
        page.tap("[data-sample=reading]")
        sent(page, lambda: page.tap("#run"))
        page.tap(".token >> nth=0")
        box = page.locator("#alternatives").bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
        picture(page, "phone")


def test_the_server_may_have_no_page_or_another_root(browser: Browser, model: welm.Model) -> None:
    with Running(model, page=False) as server:
        assert server.get("/")[0] == 404
    import fastapi

    import welm.serve

    site = fastapi.FastAPI()
    site.mount("/llm", welm.serve.app(model, model_names=("mounted",)))
    with Running(model) as server:
        server.server.config.loaded_app = site
        with opened(browser, server.url + "/llm", locale="en-US") as page:
            expect(page.locator("#model")).to_have_value("mounted")
            page.fill("#prompt", "春")
            sent(page, lambda: page.click("#run"))
            expect(page.locator(".output .token").first).to_be_visible()
