"""From prompts to continuations: how a token is chosen, and the compiled loop that chooses one after another."""

from transformer.decoding.generate import generate, stream
from transformer.decoding.methods import Greedy, Method, MinP, Temperature, TopK, TopP

__all__ = ["Greedy", "Method", "MinP", "Temperature", "TopK", "TopP", "generate", "stream"]
