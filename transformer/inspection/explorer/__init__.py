"""A page to explore a model on a text: patterns, heads, the residual stream and the next token.

subject = explorer.Subject(model, params, spell, "gpt2")  # spell: id -> explorer.Token
data = explorer.describe(subject, [explorer.Reading("the mole", ids)], title="the mole")
pathlib.Path("page.html").write_text(explorer.page(data))
"""

from transformer.inspection.explorer.page import page, show
from transformer.inspection.explorer.payload import TEXTS, Choice, describe
from transformer.inspection.explorer.reading import Reading, Token
from transformer.inspection.explorer.serve import serve
from transformer.inspection.explorer.session import CHARACTERS, Session
from transformer.inspection.explorer.subject import Subject

__all__ = [
    "CHARACTERS",
    "TEXTS",
    "Choice",
    "Reading",
    "Session",
    "Subject",
    "Token",
    "describe",
    "page",
    "serve",
    "show",
]
