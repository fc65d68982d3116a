"""The bundle is what its sources make, and can stand in a page."""

import hashlib
import pathlib
import re

import pytest

from transformer.inspection import explorer

FOLDER = pathlib.Path(explorer.__file__).parent
WEB, BUNDLE = FOLDER / "web", FOLDER / "bundle"


def digest() -> str:
    """As `build.mjs` computes it."""
    names = ["build.mjs", "package.json", "package-lock.json"]
    names += [path.relative_to(WEB).as_posix() for top in ("src", "styles") for path in (WEB / top).rglob("*.*")]
    out = hashlib.sha256()
    for name in sorted(names):
        out.update(name.encode() + b"\0" + (WEB / name).read_bytes() + b"\0")
    return out.hexdigest()


@pytest.mark.parametrize("name", ["explorer.js", "explorer.css"])
def test_it_was_built_from_the_sources_beside_it(name):
    first = (BUNDLE / name).read_text().splitlines()[0]
    assert first == f"/* sha256 of the sources: {digest()} */", "cd into web and run: npm ci && npm run build"


def test_it_closes_no_element_and_asks_for_nothing():
    script, style = ((BUNDLE / name).read_text() for name in ("explorer.js", "explorer.css"))
    assert not re.search(r"</(script|style)|<!--", script + style, re.IGNORECASE)
    assert not re.search(r"@import|url\(", style)
    assert set(re.findall(r"https?://[\w.]+", script)) <= {"http://www.w3.org"}  # names of SVG and MathML


def test_it_carries_the_licence_of_what_it_contains():
    script = (BUNDLE / "explorer.js").read_text()
    assert "The MIT License" in script and "Jason Miller" in script


def test_the_sources_write_no_markup_and_run_no_text():
    sources = {path.name: path.read_text() for path in (WEB / "src").rglob("*.js*")}
    for name, source in sources.items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function", source), name
        assert not re.search(r"style=\"|cssText|setAttribute", source), f"{name}: the policy forbids style attributes"
        assert name == "server.js" or not re.search(r"\bfetch\(|XMLHttp|WebSocket|sendBeacon|import\(", source), name


def test_every_version_is_exact():
    package = (WEB / "package.json").read_text()
    assert re.findall(r'"(preact|esbuild)": "(\d+\.\d+\.\d+)"', package) and not re.search(r'"[\^~*]', package)
