"""From prompts to continuations: how a token is chosen, and the compiled loops that choose one after another."""

from transformer.decoding.beam import beam_search
from transformer.decoding.generate import generate, stream
from transformer.decoding.hypotheses import Hypotheses
from transformer.decoding.loop import prepare
from transformer.decoding.methods import Greedy, Method, MinP, Temperature, TopK, TopP
from transformer.decoding.serve import Request, Response, serve
from transformer.decoding.speculative import Speculated, speculate

__all__ = [
    "Greedy",
    "Hypotheses",
    "Method",
    "MinP",
    "Request",
    "Response",
    "Speculated",
    "Temperature",
    "TopK",
    "TopP",
    "beam_search",
    "generate",
    "prepare",
    "serve",
    "speculate",
    "stream",
]
