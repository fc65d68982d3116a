"""The page in a browser: what it shows equals NumPy's numbers, and tokens are text whatever they hold."""

import re

import numpy as np
import pytest

from transformer.inspection.explorer.packing import unpack

VOCAB = 40  # of the sample
LAYER, HEAD = 2, 2  # what its page opens with: the head of the largest effect

DOTS = """svg => [...svg.querySelectorAll('circle')].map(dot => [
  ...dot.dataset.pair.split(',').map(Number), dot.className.baseVal, Number(dot.getAttribute('r'))])"""
INK = """(canvas, cells) => {
  const { data, width, height } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  const cell = width / cells, ink = Array(cells * cells).fill(0);
  for (let spot = 0; spot < width * height; spot++) {
    const [x, y] = [spot % width, Math.floor(spot / width)].map(at => Math.floor(at / cell));
    ink[x * cells + y] += data[4 * spot + 3] / 255 }
  return { ink, cell, left: canvas.style.left, top: canvas.style.top } }"""
SPOT = """svg => {
  const dot = svg.querySelector('[data-pair="7,2"]');
  return [dot.cx.baseVal.value, dot.cy.baseVal.value] }"""


def choose(tab, label: str, value: int | str) -> None:
    tab.get_by_role("region", name="selection").get_by_label(label, exact=True).select_option(str(value))


def step(tab, value: str) -> None:
    tab.locator(f"#pattern input[value={value}]").check(force=True)


def dots(tab, length: int, keys: int) -> np.ndarray:
    """The radii of the grid's dots, [T, S], rings negative; the radius of the largest possible dot is 1."""
    out = np.full((length, keys), np.nan)
    for query, key, tone, radius in tab.locator("#pattern svg.dots").evaluate(DOTS):
        out[query, key] = -(radius + 0.75) if tone == "minus" and radius > 0 else radius
    cell = tab.locator(".grid-band.down").bounding_box()["width"]
    return out / (0.46 * cell)


def test_the_area_of_dots_is_the_weight(visit, sample):
    tab = visit(sample.data)
    weights = sample.truth[0]["decoder"][LAYER]["weights"][HEAD]
    # Radii are written to a thousandth of a pixel, of about 20.
    np.testing.assert_allclose(dots(tab, 12, 12) ** 2, weights, atol=3e-4)
    np.testing.assert_allclose((dots(tab, 12, 12) ** 2).sum(1), 1, atol=2e-3)
    assert (dots(tab, 12, 12)[~sample.truth[0]["decoder"][LAYER]["visible"]] == 0).all()


def test_queries_run_across_until_they_are_asked_to_run_down(visit, sample):
    tab = visit(sample.data)
    across = tab.locator("#pattern svg.dots").evaluate(SPOT)
    assert across[0] / across[1] == pytest.approx(7.5 / 2.5)
    assert "Columns sum to 1" in tab.locator("#pattern .one-of p:not(.hidden)").inner_text()
    tab.locator("#pattern input[value=rows]").check(force=True)
    assert tab.locator("#pattern svg.dots").evaluate(SPOT) == across[::-1]
    assert "Rows sum to 1" in tab.locator("#pattern .one-of p:not(.hidden)").inner_text()


def test_the_area_of_signed_dots_is_the_score(visit, sample):
    tab, truth = visit(sample.data), sample.truth[0]["decoder"][LAYER]
    scaled = truth["raw"][HEAD] * 8**-0.5
    steps = {"raw": truth["raw"][HEAD], "scaled": scaled, "capped": 5 * np.tanh(scaled / 5)}
    steps |= {"biased": truth["biased"][HEAD], "masked": np.where(truth["visible"], truth["biased"][HEAD], 0)}
    for name, scores in steps.items():
        step(tab, name)
        shown = dots(tab, 12, 12)
        # A ring thinner than its pen is drawn at least that large.
        np.testing.assert_allclose(np.sign(shown) * shown**2, scores / abs(scores).max(), atol=4e-3, err_msg=name)


def test_large_grids_draw_the_same_areas_on_a_canvas(visit, large):
    tab = visit(large.data)
    tab.get_by_label("smaller dots").check()
    drawn = tab.locator("#pattern canvas.dots").evaluate(INK, 48)
    assert (drawn["left"], drawn["top"]) == ("0px", "0px")
    ink, cell = np.reshape(drawn["ink"], (48, 48)), drawn["cell"]
    weights, visible = large.truth[0]["decoder"][LAYER]["weights"][HEAD], large.truth[0]["decoder"][LAYER]["visible"]
    # Edges are drawn in quarters of a pixel, and radii below a fifth of one are left out.
    np.testing.assert_allclose(np.sqrt(ink / np.pi), 0.46 * cell * np.sqrt(weights), atol=0.21)
    assert (ink[~visible] == 0).all()


def test_cross_attention_joins_two_rows(visit, sample):
    tab = visit(sample.data)
    choose(tab, "attention", "decoder/cross")
    truth = sample.truth[0]["decoder/cross"][LAYER]
    np.testing.assert_allclose(dots(tab, 12, 5) ** 2, truth["weights"][HEAD], atol=3e-4)
    tab.locator("#text .arcs .token-row").last.locator(".word").nth(4).click()  # it may attend to nothing
    assert tab.locator(".selected-pair .figure").inner_text() == "0.000"
    assert tab.locator("#text .arcs .token-row").count() == 2
    tab.locator("#text .arcs .word").last.click()
    widths = tab.locator("#text path.mine").evaluate_all(
        "arcs => arcs.map(arc => Number(arc.getAttribute('stroke-width')))"
    )
    shown = np.sort(truth["weights"][HEAD, 11])
    np.testing.assert_allclose(widths, np.maximum(0.6, 14 * shown[shown >= 0.004]), atol=6e-3)  # two decimals
    choose(tab, "attention", "decoder")
    assert tab.locator("#text .arcs .token-row").count() == 1


@pytest.mark.slow  # two minutes: each kind of model is compiled
def test_patterns_are_those_of_a_model(visit, described, reference):
    made = described("both norms")
    model, reading = made.subject.model, made.readings[0]
    truth = reference(model, made.subject.params)
    truth(np.array([reading.tokens]), np.array([reading.source]))
    tab = visit(made.data)
    for name, site in (("decoder", "decoder/1"), ("encoder", "encoder/1"), ("decoder/cross", "decoder/1/cross")):
        for label, value in (("attention", name), ("layer", 1), ("head", 2)):
            choose(tab, label, value)
        weights = truth.taps[f"{site}/pattern"][0, 2]
        # Radii are written to a thousandth of a pixel, of about 20; the model computes in float32.
        np.testing.assert_allclose(dots(tab, *weights.shape) ** 2, weights, atol=4e-4)
    for kind in ("rotary", "post-norm", "windows", "relative", "learned"):
        assert visit(described(kind).data).locator("main section").count() == 10


def test_numbers_are_exact_where_the_pointer_is(visit, sample):
    tab, truth = visit(sample.data), sample.truth[0]["decoder"][LAYER]
    plane = tab.locator("#pattern .grid-plane")
    cell = plane.bounding_box()["width"] / 12
    plane.hover(position={"x": 9.5 * cell, "y": 7.5 * cell})  # the tenth query, the eighth key
    said = [text.replace("−", "-") for text in tab.locator("#pattern .readout-numbers dd").all_inner_texts()]
    wanted = [truth[name][HEAD, 9, 7] for name in ("raw", "biased", "weights")]
    np.testing.assert_allclose([float(said[place]) for place in (0, 3, 5)], wanted, atol=6e-4)
    assert said[4] == "may see"
    plane.hover(position={"x": 7.5 * cell, "y": 9.5 * cell})  # a later key
    assert tab.locator("#pattern .readout-numbers dd").nth(4).inner_text() == "−∞"


def test_a_layer_without_detail_says_so_and_shows_bytes(visit, sample):
    tab = visit(sample.data)
    choose(tab, "layer", 0)
    truth = sample.truth[0]["decoder"][0]
    np.testing.assert_allclose(dots(tab, 12, 12) ** 2, truth["weights"][HEAD], atol=0.5 / 255 + 3e-4)
    assert "≈" in tab.locator("#pattern .readout-numbers dd").last.inner_text()
    for section in ("pattern", "score", "value"):
        assert "--detail=0" in tab.locator(f"#{section} .missing").inner_text()
    assert tab.locator("#pattern input[value=raw]").is_disabled()


def test_tokens_are_text_whatever_they_hold(visit, sample):
    tab = visit(sample.data)
    words = tab.locator("#text .arcs .word").all_inner_texts()
    assert words[0] == "</script><script>window.ran·=·1</script>"
    assert words[1].startswith("<img·src=x·onerror='window.ran")
    assert words[2:8] == ["\\u202eevil\\u202c", "a\\u200bb", "·mole", "⏎", "‹id 6›", "‹f0 9f›"]
    assert tab.locator("h1").inner_text() == "a sample⏎ <b>title</b> \\u202e"
    assert tab.locator("main img:not(.thumb-picture)").count() == 0 and tab.locator("script").count() == 2
    assert tab.locator("bdi.token").count() == tab.locator(".token").count()


def test_probabilities_are_of_the_whole_vocabulary(visit, sample):
    tab = visit(sample.data)
    tab.locator("#text .arcs .word").last.click()
    assert_shown(tab, np.exp(logits(sample)) / np.exp(logits(sample)).sum())


def test_temperature_and_cuts_are_those_of_sampling(visit, sample):
    tab = visit(sample.data)
    tab.locator("#text .arcs .word").last.click()
    for temperature, k, p in ((0.5, VOCAB, 1.0), (1.0, 5, 1.0), (1.0, VOCAB, 0.7), (2.0, 9, 0.5)):
        for label, value in (("temperature", temperature), ("top-k", k), ("top-p", p)):
            tab.get_by_label(f"{label}, as a number").fill(str(value))
            tab.get_by_label(f"{label}, as a number").press("Enter")
        order = np.argsort(-logits(sample))
        probabilities = np.exp(logits(sample)[order] / temperature)
        probabilities[k:] = 0
        probabilities /= probabilities.sum()
        before = np.cumsum(probabilities) - probabilities
        probabilities[before >= p] = 0
        out = np.zeros(VOCAB)
        out[order] = probabilities / probabilities.sum()
        assert_shown(tab, out)


def test_where_only_the_likeliest_are_kept_the_rest_is_summed(visit, sample):
    tab = visit(sample.data)
    tab.locator("#text .arcs .word").nth(3).click()
    assert "≈" in tab.locator("#next .hint").inner_text()
    shares = shown_shares(tab)
    top = sample.data["texts"][0]["next"]["top"]
    ids, logits, log_sum_exp = (unpack(top[name])[3] for name in ("ids", "logits", "log_sum_exp"))
    truth = dict(zip(map(str, ids), np.exp(logits - log_sum_exp), strict=True))
    truth[None] = 1 - sum(truth.values())
    assert shares == pytest.approx(truth, abs=6e-4)  # a tenth of a per cent is written


def logits(sample) -> np.ndarray:
    return unpack(sample.data["texts"][0]["next"]["all"]["11"]).astype(float)


def shown_shares(tab) -> dict[str, float]:
    """Probabilities as the table has them, by token id, those too small to write as 0; the others' under None."""
    script = "rows => rows.map(row => [row.dataset.id ?? null, row.cells[2].innerText])"
    rows = tab.locator("#next tbody tr").evaluate_all(script)
    return {name: 0.0 if "<" in text else float(text.split()[0]) / 100 for name, text in rows}


def assert_shown(tab, probabilities: np.ndarray) -> None:
    shares = shown_shares(tab)
    rest = shares.pop(None)
    assert len(shares) == 12
    for name, share in shares.items():
        assert share == pytest.approx(probabilities[int(name)], abs=6e-4)  # a tenth of a per cent is written
    assert rest == pytest.approx(1 - sum(probabilities[int(name)] for name in shares), abs=6e-4)


def test_cosines_of_the_chosen_words(visit, sample):
    tab = visit(sample.data)
    tab.get_by_role("listbox", name="word of text 1").get_by_role("option").nth(4).click()
    tab.get_by_role("listbox", name="word of text 2").get_by_role("option").nth(7).click()
    shown = [float(text.replace("−", "-")) for text in tab.locator("#compare td").all_inner_texts()]
    np.testing.assert_allclose(shown, sample.cosines[:, 4, 7], atol=6e-4)  # three decimals


def test_heads_sort_by_what_they_do(visit, sample):
    tab = visit(sample.data)
    tab.get_by_label("order").select_option("ablation")
    names = tab.locator(".thumb").evaluate_all("thumbs => thumbs.map(thumb => thumb.ariaLabel)")
    effect = "effect of removing it, on ·w3 at 11 (nats)"
    assert names[0] == f"layer 2, head 2, {effect}: 1.100" and names[-1].startswith("layer 0, head 3")
    assert "on ·w3 at 11 when" in tab.locator("#heads .one-of p:not(.hidden)").inner_text()
    assert tab.locator("#heads dt").first.inner_text() == effect
    tab.locator(".thumb").nth(5).click()
    assert tab.get_by_role("region", name="selection").get_by_label("head", exact=True).input_value() == "1"


def test_a_model_that_was_not_trained_to_predict_is_not_said_to(visit, sample):
    said = "not trained to predict tokens"
    assert visit(sample.data).get_by_text(said).count() == 0
    tab = visit({**sample.data, "model": {**sample.data["model"], "predicts": False}})
    for section in ("heads", "next", "lens", "change"):
        assert said in tab.locator(f"#{section} .caption + .missing").inner_text(), section
    shown = re.sub(f"{said}", "", tab.locator("main").inner_text())
    assert not re.search("predict|guess|likel|probabilit|comes next", shown, re.IGNORECASE)


def test_words_that_texts_do_not_share_are_compared_once_they_are_chosen(visit, sample):
    texts = [*sample.data["texts"]]
    tokens = [{**token, "id": 100 + token["id"]} for token in texts[1]["sides"]["decoder"]["tokens"]]
    texts[1] = {
        **texts[1],
        "sides": {**texts[1]["sides"], "decoder": {**texts[1]["sides"]["decoder"], "tokens": tokens}},
    }
    tab = visit({**sample.data, "texts": texts})
    tab.get_by_text("No word in common: choose one in each text.").wait_for()
    assert tab.locator("#compare td").count() == tab.locator("#compare svg").count() == 0
    tab.get_by_role("listbox", name="word of text 1").get_by_role("option").nth(4).click()
    assert tab.locator("#compare td").count() == 0
    tab.get_by_role("listbox", name="word of text 2").get_by_role("option").nth(7).click()
    assert tab.locator("#compare td").count() == len(sample.cosines)


@pytest.mark.parametrize(("kind", "said"), [("learned", "but for its place"), ("rotary", "same everywhere")])
def test_where_places_are_added_a_word_is_not_the_same_everywhere(visit, sample, kind, said):
    model = sample.data["model"]
    stacks = {"decoder": {**model["stacks"]["decoder"], "position": kind}}
    tab = visit({**sample.data, "model": {**model, "stacks": stacks}})
    assert said in tab.locator("#compare .caption").inner_text()


def test_the_ledger_has_the_models_own_total_too(visit, sample):
    tab = visit({**sample.data, "model": {**sample.data["model"], "parameters": 321}})
    totals = [text.split("\t")[:2] for text in tab.locator("#ledger tbody tr").all_inner_texts()[-2:]]
    assert totals == [["total of this tally", "334"], ["in the model, each counted once", "321"]]


def test_arcs_fit_their_picture_whichever_token_asks(visit, sample):
    tab = visit(sample.data)
    picture = tab.locator("#text .arcs-picture")
    room, tops = float(picture.get_attribute("height")), []
    for place in range(12):
        tab.locator("#text .arcs .word").nth(place).click()
        tops += tab.locator("#text path.arc").evaluate_all("arcs => arcs.map(arc => arc.getBBox().y)")
        assert float(picture.get_attribute("height")) == room
    assert 7 <= min(tops) < 12  # half of the widest arc stands above its middle


def test_weights_in_a_sentence_are_not_in_scientific_notation(visit, sample):
    weights = sample.truth[0]["decoder/cross"][LAYER]["weights"]  # of five keys, all of which are listed
    least = np.where(weights > 0, weights, 1).min(-1)
    head, query = np.unravel_index(np.argmin(least), least.shape)
    assert least[head, query] < 0.005
    tab = visit(sample.data)
    choose(tab, "attention", "decoder/cross")
    choose(tab, "head", int(head))
    tab.locator("#text .arcs .token-row").last.locator(".word").nth(int(query)).click()
    said = tab.locator("#text .ranking").inner_text()
    assert "< 0.01" in said and not re.search(r"\de", said)
