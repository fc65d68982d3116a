"""A functional transformer in JAX and Flax: encoder, decoder, or both.

One legend of dimensions holds in every shape comment and einsum string:

  B  batch                  H  query heads              F  feed-forward width
  T  query/target length    G  key/value heads          V  vocabulary
  S  key/source length      K  width of one head        L  layers
  D  model width                                        N  experts

Activations are `[B, T, D]`, heads `[B, T, H, K]`, scores and patterns `[B, H, T, S]`. Parameters keep their heads
apart (query `[D, H, K]`, key and value `[D, G, K]`, output `[H, K, D]`), so one head is one slice; stacked over
layers they gain a leading axis, `[L, ...]`.
"""

__version__ = "0.1.0"
