"""The page in use: by keyboard, on narrow screens, in the dark, in a notebook, with a model behind it, or broken."""

import re
import threading

import pytest

from transformer.inspection import explorer
from transformer.inspection.explorer.serve import Handler, Server

LAYER, HEAD = 2, 2  # what the sample's page opens with: the head of the largest effect
HEIGHT = "document.documentElement.scrollHeight"
FOCUS = """() => {
  const active = document.activeElement, outline = getComputedStyle(active);
  return [active.closest('section')?.id ?? active.closest('nav, .selection, header')?.className ?? 'body',
          parseFloat(outline.outlineWidth) > 0 || active.matches('input[type=radio]')] }"""
SMALL = """() => [...document.querySelectorAll('button, select, input[type=number]')].filter(control =>
  !control.matches('.thumb, .word') && control.getBoundingClientRect().height < 24).length"""
CUT = """() => {
  const scrolls = (element) => element &&
    (getComputedStyle(element).overflowX !== 'visible' || scrolls(element.parentElement));
  return [...document.querySelectorAll('#app *')].filter(element =>
    element.getBoundingClientRect().right > innerWidth + 1 && !scrolls(element.parentElement)).length }"""
CONTRAST = """() => {
  const linear = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const ground = (element) => {
    const [r, g, b, a = 1] = numbers(getComputedStyle(element).backgroundColor);
    return a === 1 ? [r, g, b] : ground(element.parentElement) };
  const out = [];
  for (const element of document.querySelectorAll('#app *')) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own || element.closest('svg, .unseen, .hidden, option, :disabled, .disabled')) continue;
    const pair = [luminance(numbers(getComputedStyle(element).color)), luminance(ground(element))];
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (ratio < 4.5) out.push([element.className, element.textContent.slice(0, 30), ratio]);
  }
  return out }"""


def choose(tab, label: str, value: int | str) -> None:
    tab.get_by_role("region", name="selection").get_by_label(label, exact=True).select_option(str(value))


def step(tab, value: str) -> None:
    tab.locator(f"#pattern input[value={value}]").check(force=True)


def test_keys_move_through_the_grid_and_say_where_they_are(visit, sample):
    tab, truth = visit(sample.data), sample.truth[0]["decoder"]
    grid = tab.get_by_role("application")
    grid.focus()
    tab.keyboard.press("Home")  # the first query
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowDown"):
        tab.keyboard.press(key)
    live = tab.locator("[aria-live=polite]")
    said = live.inner_text()
    first_key = int(re.search(r"key .* (\d+):", said)[1])
    assert re.match(r"query a\\u200bb 3, key", said)
    shown = float(re.search(r"weight ([\d.e-]+)", said)[1])
    assert shown == pytest.approx(truth[LAYER]["weights"][HEAD, 3, first_key], abs=6e-5)
    tab.keyboard.press("Shift+ArrowUp")
    assert live.inner_text() == f"layer 1, head {HEAD}"
    assert tab.locator(".selected-pair .query").inner_text() == "a\\u200bb"


def test_every_part_is_reached_with_the_tab_key(visit, sample):
    tab = visit(sample.data)
    seen = {}
    for _ in range(90):
        tab.keyboard.press("Tab")
        place, visible = tab.evaluate(FOCUS)
        seen[place] = seen.get(place, True) and visible
    assert {"text", "pattern", "heads", "score", "next", "lens", "compare", "change", "ledger"} <= set(seen)
    assert all(seen.values())


def test_the_page_keeps_its_height(visit, sample):
    tab = visit(sample.data)
    heights = [tab.evaluate(HEIGHT)]
    plane = tab.locator("#pattern .grid-plane")
    for name in ("raw", "scaled", "capped", "biased", "masked", "softmax"):
        step(tab, name)
        heights.append(tab.evaluate(HEIGHT))
    for x, y in ((5, 5), (300, 20), (20, 200)):
        plane.hover(position={"x": x, "y": y})
        heights.append(tab.evaluate(HEIGHT))
    tab.get_by_role("application").focus()
    for key in ("ArrowLeft", "ArrowUp", "Home"):
        tab.keyboard.press(key)
        heights.append(tab.evaluate(HEIGHT))
    tab.get_by_label("temperature, as a number").fill("0")
    heights.append(tab.evaluate(HEIGHT))
    assert len(set(heights)) == 1


def test_a_narrow_screen_scrolls_down_only(visit, sample):
    tab = visit(sample.data, width=400)
    assert tab.evaluate("document.documentElement.scrollWidth") == 400 and tab.evaluate(CUT) == 0
    tab.locator("#pattern .grid-plane").click(position={"x": 40, "y": 10})
    assert tab.locator(".selected-pair .query").inner_text() != ""
    assert tab.evaluate(SMALL) == 0  # WCAG 2.2, 2.5.8: targets of 24 pixels


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(visit, sample, scheme):
    tab = visit(sample.data, scheme=scheme)
    assert tab.evaluate(CONTRAST) == []  # WCAG 2.2, 1.4.3: 4.5 to 1
    other = {"light": "dark", "dark": "light"}[scheme]
    before = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    tab.locator(f"header input[value={other}]").check(force=True)
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != before
    assert tab.evaluate(CONTRAST) == []


def test_those_who_want_no_motion_get_none(visit, sample):
    tab = visit(sample.data, reduced_motion="reduce")
    script = "getComputedStyle(document.querySelector('.dots circle')).transitionDuration"
    assert tab.evaluate(script) == "0s"


def test_what_cannot_be_read_is_said_in_a_panel(visit, sample):
    broken = {**sample.data, "version": 2}
    assert "version 2" in visit(broken).get_by_role("alert").inner_text()
    texts = [{**sample.data["texts"][0]}]
    texts[0]["sides"] = {"decoder": {**texts[0]["sides"]["decoder"], "norms": {"d": "f32", "s": [9], "b": "AAAA"}}}
    said = visit({**sample.data, "texts": texts}).get_by_role("alert").inner_text()
    assert "data.texts[0].sides.decoder.norms" in said


def test_a_notebook_shows_it_in_a_frame(visit, sample, tmp_path):
    (tmp_path / "notebook.html").write_text(explorer.show(sample.data)._repr_html_(), encoding="utf-8")
    tab = visit(url=(tmp_path / "notebook.html").as_uri(), ready="iframe", expected="about:srcdoc")
    frame = tab.frame_locator("iframe")
    frame.get_by_role("button", name="compare").click()
    assert frame.locator("#compare-title").evaluate("title => title === document.activeElement")
    assert frame.locator("main section").count() == 10


def test_a_browser_that_cannot_inflate_is_told_so(browser, sample, tmp_path):
    (tmp_path / "page.html").write_text(explorer.page(sample.data))
    with browser.new_context() as context:
        tab = context.new_page()
        tab.add_init_script("delete window.DecompressionStream")
        tab.goto((tmp_path / "page.html").as_uri())
        assert "DecompressionStream" in tab.get_by_role("alert").inner_text()


@pytest.fixture
def served(sample):
    """The address of the sample's page with a model behind it that answers by rote, and what it was asked."""
    asked = []

    def intervene(request):
        asked.append(("intervene", request))
        if len(request["patches"]) > 1:
            raise ValueError("one change at a time")
        after = 0.25 if request["patches"][0]["action"] == "zero" else 0.75
        halves = {"names": {"4": " mole", "0": "</script>"}, "rest_before": 0.1, "rest_after": 0.1, "kl": 0.125}
        return {
            "before": {"ids": [4, 0], "probabilities": [0.6, 0.3]},
            "after": {"ids": [4, 0], "probabilities": [after, 0.9 - after]},
            **halves,
        }

    def detail(request):
        asked.append(("detail", request))
        return {**sample.data["texts"][0]["attentions"][0]["detail"]["1"], "names": {}}

    def texts(request):
        asked.append(("texts", request))
        return {**sample.data, "title": "another", "texts": sample.data["texts"][1:], "similarity": []}

    with Server(("127.0.0.1", 0), Handler) as server:
        actions = {"intervene": intervene, "detail": detail, "texts": texts}
        server.open(sample.data, actions, {"max_texts": 3, "max_characters": 4000})
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.url, asked
        server.shutdown()
        thread.join()


def test_a_served_page_changes_heads_and_shows_what_follows(visit, served):
    url, asked = served
    tab = visit(url=url, expected="400 (Bad Request)")
    tab.get_by_role("button", name="set to zero").click()
    tab.get_by_text("0.1250 nats").wait_for()
    patch = {"attention": "decoder", "layer": LAYER, "head": HEAD, "position": None, "action": "zero"}
    assert asked[-1] == ("intervene", {"text": "text 0", "patches": [patch], "position": 0})
    assert tab.locator("#change tbody tr").first.inner_text().split("\t")[-2:] == ["60.0 %", "25.0 %"]
    tab.get_by_role("button", name="scale").click()
    tab.get_by_text("75.0 %").wait_for()
    assert asked[-1][1]["patches"] == [{**patch, "action": "scale", "value": 2}]
    choose(tab, "head", 0)
    tab.get_by_role("button", name="set to zero").click()
    tab.locator(".trouble").get_by_text("one change at a time").wait_for()
    tab.get_by_role("button", name="take this change back").last.click()
    tab.get_by_text("75.0 %").wait_for()


def test_a_served_page_fetches_detail_and_other_texts(visit, served):
    url, asked = served
    tab = visit(url=url)
    choose(tab, "layer", 0)
    tab.locator("#score svg").first.wait_for()
    assert asked[-1] == ("detail", {"text": "text 0", "attention": "decoder", "layer": 0})
    tab.get_by_label("text 1", exact=True).fill("other words")
    tab.get_by_role("button", name="run the model").click()
    tab.get_by_role("heading", name="another").wait_for()
    assert asked[-1] == ("texts", {"texts": ["other words", "text 1"]})
    assert tab.get_by_role("button", name="set to zero").is_visible()
