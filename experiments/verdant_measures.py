"""What a model of verdant sentences knows of a noun at each depth, and which of its heads brought it there.

Attention says where a head looks, not what that does. So what each head puts together at the noun (`decoder/*/mixed`)
is also replaced: by its mean over all questions (ablation), and by what it is in the other context (patching). If some
heads carry the answer and no others do, the model gives the other context's answer when those are exchanged, and its
own when all others are.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.verdant_questions import Questions
from transformer import inspection, models
from transformer.inspection import Patch
from transformer.inspection.ablation import ablate

HEADS = "decoder/*/mixed"
VECTORS = ("decoder/embedding", "decoder/*/residual_mid", "decoder/*/residual_post", "decoder/final_norm")
FOUND = 0.1  # the share of what exchanging all heads does to the odds that a head must have to be a carrier


def nats(model: models.Transformer, params: Any, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """-log p of each target of a batch, 0 where its weight is: `[B, T]`."""
    logits, _ = inspection.run(model, params, batch["inputs"])
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][..., None], axis=-1)[..., 0]
    return np.asarray(-log_p * batch["weights"], np.float64)


def vectors(model: models.Transformer, params: Any, questions: Questions) -> dict[str, np.ndarray]:
    """The noun's vector in every question, `[N, D]` in float64, by site in forward order."""
    _, taps = inspection.run(model, params, questions.tokens, capture=VECTORS)
    rows = np.arange(len(questions.noun))
    return {site: np.asarray(array, np.float64)[rows, questions.noun] for site, array in taps.items()}


def nearest_centroid(known: np.ndarray, labels: np.ndarray, asked: np.ndarray, right: np.ndarray) -> np.ndarray:
    """How often the nearest mean of labelled vectors has the right label.

    Args:
      known: `[N, D]`.
      labels: `[N]` integers.
      asked: `[M, D]`.
      right: `[M]`, their labels.

    Returns:
      `[M]`: 1 if the right mean is the nearest, 0 if another is, and 1 / k if it is among k that are equally near: how
      often a guess among those is right.
    """
    names = np.unique(labels)
    means = np.stack([known[labels == name].mean(axis=0) for name in names])
    distances = np.linalg.norm(asked[:, None] - means, axis=-1)  # [M, labels]
    nearest = np.isclose(distances, distances.min(axis=1, keepdims=True), rtol=1e-9, atol=1e-9)
    return (nearest & (names == right[:, None])).sum(axis=1) / nearest.sum(axis=1)


def accuracy(vectors: np.ndarray, questions: Questions) -> float:
    """How often the nearest centroid among a group's answers is the right one.

    The first half of the questions makes the centroids, the second half is asked.

    Args:
      vectors: `[N, D]`, the nouns'.
    """
    first, hits = _first_half(questions), []
    for group in np.unique(questions.group):
        known, asked = (np.flatnonzero((questions.group == group) & half) for half in (first, ~first))
        right = questions.right
        hits.append(nearest_centroid(vectors[known], right[known], vectors[asked], right[asked]))
    return float(np.concatenate(hits).mean())


def spread(vectors: np.ndarray, tokens: np.ndarray) -> float:
    """The largest difference in any feature between vectors `[N, D]` of one token `[N]`."""
    return max(float(np.ptp(vectors[tokens == token], axis=0).max()) for token in np.unique(tokens))


class Effect(NamedTuple):
    """What becomes of the answers to questions when heads are replaced.

    Attributes:
      nats: -log p of the right answer, among the answers.
      right: the share of questions whose likeliest answer is the right one.
      followed: the share whose likeliest answer is that of the other context.
      odds: log p of the other context's answer - log p of the right one.
    """

    nats: np.ndarray
    right: np.ndarray
    followed: np.ndarray
    odds: np.ndarray


class Carriers(NamedTuple):
    """Which heads carry the answers to a noun; effects are means over the second half of the questions.

    Attributes:
      attention: `[L, H]`, the mass of the noun's attention on the words that decide.
      plain: the model as it is.
      ablated, exchanged: `[L, H]`, one head at a time.
      found: `[L, H]` booleans: what exchanging the head does to the odds is at least `FOUND` of what exchanging all
        heads does, on the first half of the questions.
      together: the effects of ablation and of exchange by name of several heads: `found`, `others`, `all`.
    """

    attention: np.ndarray
    plain: Effect
    ablated: Effect
    exchanged: Effect
    found: np.ndarray
    together: dict[str, tuple[Effect, Effect]]


class Asked(NamedTuple):
    """What a model's vectors of nouns and its heads have to say to questions of one kind.

    Attributes:
      questions: which ones.
      vectors: by site, `[N, D]`.
      accuracy: by site, see `accuracy`.
      chance: what a guess has.
      carriers: the heads.
    """

    questions: Questions
    vectors: dict[str, np.ndarray]
    accuracy: dict[str, float]
    chance: float
    carriers: Carriers


def ask(model: models.Transformer, params: Any, questions: Questions) -> Asked:
    """Everything that is measured on questions of one kind."""
    found = vectors(model, params, questions)
    accuracies = {site: accuracy(each, questions) for site, each in found.items()}
    second = ~_first_half(questions)
    chance = float((1 / questions.answers.any(axis=-1).sum(axis=-1)[second]).mean())
    return Asked(questions, found, accuracies, chance, carriers(model, params, questions))


def carriers(model: models.Transformer, params: Any, questions: Questions) -> Carriers:
    """Ablates and exchanges every head at the noun by itself, and then together those that carry the answers."""
    tokens, noun = questions.tokens, np.arange(questions.tokens.shape[1]) == questions.noun[:, None]  # [N, T]
    logits, taps = inspection.run(model, params, tokens, capture=(HEADS, "decoder/*/pattern"))
    _, elsewhere = inspection.run(model, params, questions.others, capture=HEADS)
    mean = ablate("mean", model, HEADS, taps, by_position=False, weights=noun).value
    # Of one shape, so that both run the same programs.
    values = (jnp.broadcast_to(mean, elsewhere[HEADS].shape), elsewhere[HEADS])
    patches = [Patch(HEADS, value, mask=noun[..., None, None]) for value in values]
    first, metric = _first_half(questions), functools.partial(answers, questions=questions)

    def effects(scores: jax.Array) -> list[Effect]:
        return [effect(np.asarray(scores, np.float64), questions, half) for half in (first, ~first)]

    def together(heads: np.ndarray) -> list[list[Effect]]:
        chosen = [each.replace(mask=noun[..., None, None] & heads[:, None, None, :, None]) for each in patches]
        return [effects(metric(inspection.run(model, params, tokens, patches=each)[0])) for each in chosen]

    ablated, exchanged = (
        effects(inspection.sweep(model, params, tokens, each, metric=metric, layers="all", heads="all"))
        for each in patches
    )
    plain, every = effects(metric(logits)), np.ones(exchanged[0].odds.shape, bool)
    moved, most = (each[0].odds - plain[0].odds for each in (exchanged, together(every)[1]))
    found = moved >= FOUND * most
    groups = {"found": found, "others": ~found, "all": every}
    return Carriers(
        attention(np.asarray(taps["decoder/*/pattern"]), questions, ~first),
        plain[1],
        ablated[1],
        exchanged[1],
        found,
        {name: tuple(halves[1] for halves in together(heads)) for name, heads in groups.items()},
    )


def attention(pattern: np.ndarray, questions: Questions, rows: np.ndarray) -> np.ndarray:
    """The mean mass of the noun's attention on the words that decide, of patterns `[L, N, H, T, T]`: `[L, H]`."""
    at_noun = pattern[:, rows, :, questions.noun[rows]]  # [N, L, H, T]
    return np.einsum("NLHT,NT->LH", at_noun, questions.sources[rows].astype(np.float64)) / rows.sum()


def answers(logits: jax.Array, questions: Questions) -> jax.Array:
    """Answers' log p, `[N, C]`: that the next word is one of an answer's, given that it is one of any answer's."""
    at_noun = jnp.take_along_axis(logits, jnp.asarray(questions.noun)[:, None, None], axis=1)  # [N, 1, V]
    return jax.nn.log_softmax(jax.nn.logsumexp(jnp.where(questions.answers, at_noun, -jnp.inf), axis=-1))


def effect(scores: np.ndarray, questions: Questions, rows: np.ndarray) -> Effect:
    """The means over some rows `[N]` of what answers' scores `[..., N, C]` say."""
    scores, right, other = scores[..., rows, :], questions.right[rows], questions.other[rows]
    likeliest, each = scores.argmax(axis=-1), np.arange(rows.sum())
    own, others = scores[..., each, right], scores[..., each, other]
    columns = (-own, likeliest == right, likeliest == other, others - own)
    return Effect(*(column.mean(axis=-1) for column in columns))


def _first_half(questions: Questions) -> np.ndarray:
    return np.arange(len(questions.noun)) < len(questions.noun) // 2
