from __future__ import annotations

import base64
import hashlib
import html
import html.parser
import json
import re

import pytest

from transformer.inspection import explorer
from transformer.inspection.explorer.page import BUNDLE, embed, read

EVIL = "</script><script>alert(1)</script><!--<script>]]>&amp;\u2028\u2029\ufeff\x00\ud800\"'\\"
DATA = {"title": f"{EVIL}</title>", "served": None, "texts": [EVIL]}


class Parser(html.parser.HTMLParser):
    """Elements with their attributes and text, as a browser sees them."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.open = [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])
        self.open = True

    def handle_endtag(self, tag):
        self.open = False

    def handle_data(self, data):
        if self.open:
            self.elements[-1][2] += data

    def named(self, tag):
        return [(attributes, text) for name, attributes, text in self.elements if name == tag]


def policy(page):
    (content,) = (
        a["content"] for a, _ in Parser(page).named("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )
    return dict(rule.strip().split(" ", 1) for rule in content.split(";"))


@pytest.fixture
def bundle(tmp_path):
    (tmp_path / "explorer.js").write_text("'use strict'; const é = a < b && {};\n", encoding="utf-8")
    (tmp_path / "explorer.css").write_text("body > p { color: red }\n")
    return tmp_path


def test_whatever_a_text_holds_the_page_has_the_elements_that_it_should(bundle):
    parsed = Parser(explorer.page(DATA, bundle))
    tags = [tag for tag, *_ in parsed.elements]
    assert tags == ["html", "head", "meta", "meta", "meta", "title", "link", "style", "body", "div", "script", "script"]
    (attributes, data), (none, script) = parsed.named("script")
    assert attributes == {"type": "application/json", "id": "data"} and json.loads(data) == DATA
    assert none == {} and script == (bundle / "explorer.js").read_text(encoding="utf-8")
    assert parsed.named("title")[0][1] == DATA["title"].replace("\ud800", "?") and parsed.named("div")[0][0] == {
        "id": "app"
    }
    assert parsed.named("link")[0][0] == {"rel": "icon", "href": "data:,"}


def test_json_has_no_sign_that_html_or_javascript_would_read():
    text = embed(DATA)
    assert text.isascii() and not set(text) & set("<>&") and json.loads(text) == DATA
    with pytest.raises(ValueError):
        embed({"number": float("nan")})


@pytest.mark.parametrize("where", ["shipped", "made"])
def test_the_policy_lets_run_what_is_there_and_nothing_else(bundle, where):
    page = explorer.page(DATA, bundle) if where == "made" else explorer.page(DATA)
    parsed, rules = Parser(page), policy(page)

    def digest(text):
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    assert rules == {
        "default-src": "'none'",
        "script-src": digest(parsed.named("script")[1][1]),
        "style-src": digest(parsed.named("style")[0][1]),
        "img-src": "data:",
        "connect-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    served = policy(explorer.page({**DATA, "served": {"base": "/x/"}}, bundle))
    assert served["connect-src"] == "'self'"


def test_nothing_is_loaded_from_anywhere():
    page = explorer.page(DATA)
    assert not re.search(
        r"""(?:src|href)\s*=\s*["']?(?!data:,)[\w/.]""", re.sub(r"<script>.*</script>", "", page, flags=re.S)
    )
    assert not re.search(r"https?://(?!www\.w3\.org/)", page)  # but for names of namespaces


def test_a_bundle_that_is_missing_or_would_end_early_is_refused(bundle):
    (bundle / "explorer.css").write_text("a { content: '</STYLE>' }")
    with pytest.raises(ValueError, match=r"explorer\.css holds </style or <!--"):
        explorer.page(DATA, bundle)
    (bundle / "explorer.js").write_text("const a = '<!--'")
    with pytest.raises(ValueError, match=r"explorer\.js holds </script or <!--"):
        read(bundle)
    (bundle / "explorer.js").unlink()
    with pytest.raises(ValueError, match=r"explorer\.js is missing: build it with npm run build"):
        explorer.page(DATA, bundle)


def test_a_notebook_shows_the_page_in_a_frame_of_its_own():
    shown = explorer.show(DATA)._repr_html_()
    ((attributes, _),) = Parser(shown).named("iframe")
    assert attributes["sandbox"] == "allow-scripts" and attributes["srcdoc"] == explorer.page(DATA)
    assert BUNDLE.name == "bundle"
