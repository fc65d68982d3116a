"""The page in use: by keyboard, on narrow screens, in the dark, in a notebook, with a model behind it, or broken."""

import contextlib
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
    whole = "element => element.scrollWidth <= element.clientWidth"
    assert tab.locator("#text .ranking").evaluate(whole)
    names = tab.locator(".slider label, .choice legend:not(.unseen)").all()
    assert max(name.bounding_box()["height"] for name in names) < 30  # in one line
    totals = [count.bounding_box() for count in tab.locator("#ledger td:nth-child(2)").all()]
    assert max(box["x"] + box["width"] for box in totals) < 400 and min(box["width"] for box in totals) > 20
    assert tab.locator("#ledger th").first.bounding_box()["width"] > 120
    tab.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    assert tab.locator(".selected-pair").bounding_box()["y"] == 0


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


def test_the_end_of_a_spinner_keeps_the_focus(visit, sample):
    tab = visit(sample.data)
    further = tab.get_by_role("button", name="next head")
    for _ in range(3):  # from head 2 of 4
        further.press("Enter")
    assert further.evaluate("button => button === document.activeElement && button.ariaDisabled") == "true"
    assert tab.get_by_role("region", name="selection").get_by_label("head", exact=True).input_value() == "3"


def test_the_choice_of_colours_stays_in_a_row(visit, sample):
    tab = visit({**sample.data, "title": "a long title " * 20})
    tops = tab.locator("header .choice-options label").evaluate_all("all => all.map(one => one.offsetTop)")
    assert len(set(tops)) == 1


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
def serve(sample):
    """`serve(data)`: the address of a page with a model behind it that answers by rote, and what it was asked.

    Tests name it before `visit`, so that it answers until their pages are closed.
    """
    asked = []

    def intervene(request):
        asked.append(("intervene", request))
        if len(request["patches"]) > 1:
            raise ValueError("one change at a time")
        after = 0.25 if request["patches"][0]["action"] == "zero" else 0.75
        kl = 0.125 if after == 0.25 else 0.0
        halves = {"names": {"4": " mole", "0": "</script>"}, "rest_before": 0.1, "rest_after": 0.1, "kl": kl}
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

    with contextlib.ExitStack() as stack:

        def start(data):
            server = stack.enter_context(Server(("127.0.0.1", 0), Handler))
            actions = {"intervene": intervene, "detail": detail, "texts": texts}
            server.open(data, actions, {"max_texts": 3, "max_characters": 4000})
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return server.url, asked

        yield start


def test_a_served_page_changes_heads_and_shows_what_follows(serve, visit, sample):
    url, asked = serve(sample.data)
    tab = visit(url=url, expected="400 (Bad Request)")
    tab.get_by_role("button", name="set to zero").click()
    tab.get_by_text("0.1250 nats").wait_for()
    patch = {"attention": "decoder", "layer": LAYER, "head": HEAD, "position": None, "action": "zero"}
    assert asked[-1] == ("intervene", {"text": "text 0", "patches": [patch], "position": 0})
    assert tab.locator("#change tbody tr").first.inner_text().split("\t")[-2:] == ["60.0 %", "25.0 %"]
    tab.get_by_role("button", name="scale").click()
    tab.get_by_text("75.0 %").wait_for()
    assert tab.locator("#change [role=status]").inner_text() == "The prediction did not move."
    assert asked[-1][1]["patches"] == [{**patch, "action": "scale", "value": 2}]
    choose(tab, "head", 0)
    tab.get_by_role("button", name="set to zero").click()
    tab.locator(".trouble").get_by_text("one change at a time").wait_for()
    tab.get_by_role("button", name="take this change back").last.click()
    tab.get_by_text("75.0 %").wait_for()


def test_a_served_page_fetches_detail_and_other_texts(serve, visit, sample):
    url, asked = serve(sample.data)
    tab = visit(url=url)
    choose(tab, "layer", 0)
    tab.locator("#score svg").first.wait_for()
    assert asked[-1] == ("detail", {"text": "text 0", "attention": "decoder", "layer": 0})
    tab.get_by_label("text 1", exact=True).fill("other words")
    tab.get_by_role("button", name="run the model").click()
    tab.get_by_role("heading", name="another").wait_for()
    assert ("texts", {"texts": ["other words", "text 1"]}) in asked
    assert tab.get_by_role("button", name="set to zero").is_visible()


def test_a_served_page_keeps_its_selection_over_other_texts(serve, visit, sample):
    tab = visit(url=serve(sample.data)[0])
    chosen = {"attention": "decoder/cross", "layer": "1", "head": "3"}
    for label, value in chosen.items():
        choose(tab, label, value)
    step(tab, "scaled")
    tab.get_by_role("button", name="run the model").click()
    tab.get_by_role("heading", name="another").wait_for()
    selection = tab.get_by_role("region", name="selection")
    assert {label: selection.get_by_label(label, exact=True).input_value() for label in chosen} == chosen
    assert tab.locator("#pattern input[value=scaled]").is_checked()


def test_a_served_page_shows_the_prediction_before_any_change(serve, visit, sample):
    tab = visit(url=serve(sample.data)[0])
    tab.locator("#text .arcs .word").last.click()
    known = tab.locator("#next tbody tr").evaluate_all("rows => rows.map(row => row.cells[2].innerText)")
    assert tab.locator("#change tbody tr").evaluate_all("rows => rows.map(row => row.cells[2].innerText)") == known
    height = tab.evaluate(HEIGHT)
    tab.get_by_role("button", name="set to zero").click()
    tab.get_by_text("0.1250 nats").wait_for()
    assert tab.evaluate(HEIGHT) == height


def test_texts_of_different_sources_are_changed_apart(serve, visit, sample):
    texts = [{**sample.data["texts"][0], "text": "target", "source": source} for source in ("this", "that")]
    url, asked = serve({**sample.data, "texts": texts, "similarity": []})
    tab = visit(url=url)
    tab.get_by_role("button", name="set to zero").click()
    tab.get_by_text("0.1250 nats").wait_for()
    assert asked[-1][1]["source"] == "this"
    tab.locator(".selection input[value='1']").check(force=True)
    tab.get_by_text("No change yet").wait_for()
    tab.get_by_role("button", name="take from another text").click()
    tab.get_by_text("75.0 %").wait_for()
    (patch,) = asked[-1][1]["patches"]
    assert asked[-1][1]["source"] == "that" and (patch["other"], patch["other_source"]) == ("target", "this")
    assert tab.get_by_label("as in").input_value() == "0"


def test_a_change_names_the_token_of_its_own_attention(serve, visit, sample):
    first, second = sample.data["texts"]
    encoder = {**second["attentions"][0], "name": "encoder", "queries": "encoder", "keys": "encoder"}
    sides = {**first["sides"], "encoder": second["sides"]["decoder"]}  # of fewer tokens
    text = {**first, "attentions": [first["attentions"][0], encoder], "sides": sides}
    tab = visit(url=serve({**sample.data, "texts": [text], "similarity": []})[0])
    tab.locator("#text .arcs .word").last.click()
    tab.get_by_label("at every token").uncheck()
    tab.get_by_role("button", name="set to zero").click()
    choose(tab, "attention", "encoder")
    assert tab.locator(".patch .token").inner_text() == "·w3"
