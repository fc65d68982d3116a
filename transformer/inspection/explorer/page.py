"""One self-contained HTML file: data, program and style, and a policy that lets a browser run and load nothing else."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import pathlib

from transformer.inspection.explorer.packing import Json

BUNDLE = pathlib.Path(__file__).parent / "bundle"
SCRIPT, STYLE = "explorer.js", "explorer.css"
ESCAPES = {character: f"\\u{ord(character):04x}" for character in "<>&"}

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<div id="app"></div>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def page(data: Json, bundle: pathlib.Path = BUNDLE) -> str:
    """The page of what `describe` returned, which works from a disk, without a network."""
    script, style = read(bundle)
    values = {
        "policy": html.escape(policy(script, style, served=data["served"] is not None)),
        "title": html.escape(data["title"].encode("utf-8", "replace").decode()),  # half a character has no encoding
        "style": style,
        "script": script,
        "data": embed(data),
    }
    return PAGE.format(**values)


def read(bundle: pathlib.Path) -> tuple[str, str]:
    """The program and the style.

    Raises:
      ValueError: if one is missing, or would end its own element.
    """
    texts = []
    for name, end in ((SCRIPT, "</script"), (STYLE, "</style")):
        try:
            texts.append((bundle / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{bundle / name} is missing: build it with npm run build in web, beside it") from None
        if end in texts[-1].lower() or "<!--" in texts[-1]:
            raise ValueError(f"{bundle / name} holds {end} or <!--, which would end it early: build it anew")
    return texts[0], texts[1]


def policy(script: str, style: str, *, served: bool) -> str:
    """The Content-Security-Policy of a page: this program, this style, and nothing from anywhere else."""
    rules = {
        "default-src": "'none'",
        "script-src": f"'sha256-{_digest(script)}'",
        "style-src": f"'sha256-{_digest(style)}'",
        "img-src": "data:",
        "connect-src": "'self'" if served else "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def embed(data: Json) -> str:
    """JSON in ASCII that no HTML parser reads as anything but text."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.translate(str.maketrans(ESCAPES))


@dataclasses.dataclass(frozen=True)
class Shown:
    """A page within a notebook."""

    content: str
    height: int = 800

    def _repr_html_(self) -> str:
        """A frame that may run its own program, and reach neither the notebook nor the network."""
        frame = f'sandbox="allow-scripts" width="100%" height="{self.height}" style="border: 0"'
        return f'<iframe srcdoc="{html.escape(self.content)}" {frame}></iframe>'


def show(data: Json) -> Shown:
    """What a notebook shows as the page."""
    return Shown(page(data))


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
