"""What was measured on a model of verdant sentences, as tables, as JSON and as a picture."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from experiments import plots
from experiments.verdant_lexicon import ENGLISH
from experiments.verdant_measures import Asked, Effect, spread

QUESTIONS = {"sense": "sense of an ambiguous noun", "manner": "manner of a noun with adjectives"}
WHERE = {
    "embedding": "the noun alone",
    "residual_mid": "layer {}, after attention",
    "residual_post": "layer {}, at the end",
    "final_norm": "after the last norm",
}


class Loss(NamedTuple):
    """Nats per token of the same sentences.

    Attributes:
      model: what the model loses.
      best: what is lost with the probabilities that the words were drawn with.
      entropy: what these lose on average over all that might have been drawn.
    """

    model: float
    best: float
    entropy: float


class Measured(NamedTuple):
    """Everything: the loss, and what is known of the sense of nouns and of the manners that go with them."""

    step: int
    loss: Loss
    sense: Asked
    manner: Asked

    def asked(self) -> dict[str, Asked]:
        """By kind."""
        return {"sense": self.sense, "manner": self.manner}


def summary(measured: Measured) -> dict[str, Any]:
    """All numbers as JSON has them."""
    out: dict[str, Any] = {"step": measured.step, "loss": measured.loss._asdict()}
    for name, asked in measured.asked().items():
        carriers = asked.carriers
        out[name] = {
            "chance": asked.chance,
            "accuracy": asked.accuracy,
            "spread": {site: spread(vectors, _nouns(asked)) for site, vectors in asked.vectors.items()},
            "attention": carriers.attention.tolist(),
            "found": np.argwhere(carriers.found).tolist(),
            "plain": _plain(carriers.plain),
            "ablated": _plain(carriers.ablated),
            "exchanged": _plain(carriers.exchanged),
            "together": {
                heads: {"ablated": _plain(ablated), "exchanged": _plain(exchanged)}
                for heads, (ablated, exchanged) in carriers.together.items()
            },
        }
    return out


def tables(measured: Measured) -> tuple[Table, ...]:
    """The loss, the nouns' vectors by depth, every head, and heads together."""
    return _loss(measured), _depth(measured), _heads(measured), _together(measured)


def _loss(measured: Measured) -> Table:
    out = Table(title=f"step {measured.step}: nats per token of sentences that it has not seen", title_justify="left")
    for name in ("the model", "the best possible", "difference", "entropy of the grammar"):
        out.add_column(name, justify="right")
    loss = measured.loss
    out.add_row(*(f"{value:.4f}" for value in (loss.model, loss.best, loss.model - loss.best, loss.entropy)))
    return out


def _depth(measured: Measured) -> Table:
    title = "vectors of nouns: how far those of one noun differ, and whether the nearest centroid has the right answer"
    out = Table("where", title=title, title_justify="left")
    for name in ("difference", *QUESTIONS):
        out.add_column(name, justify="right")
    sense, manner = measured.sense, measured.manner
    for site in sense.vectors:
        differ = spread(sense.vectors[site], _nouns(sense))
        out.add_row(_where(site), f"{differ:.3g}", *(f"{asked.accuracy[site]:.3f}" for asked in (sense, manner)))
    out.add_row("a guess", "", *(f"{asked.chance:.3f}" for asked in (sense, manner)))
    return out


def _heads(measured: Measured) -> Table:
    title = (
        "heads at the noun, layer.head, * for those found: attention on the words that decide; right answers without\n"
        "the head; answers of the other context when the head alone is as it is there"
    )
    out = Table("head", title=title, title_justify="left")
    for kind in measured.asked():
        for name in ("attention", "without", "exchanged"):
            out.add_column(f"{kind}\n{name}", justify="right")
    for head in np.ndindex(measured.sense.carriers.found.shape):
        cells = []
        for asked in measured.asked().values():
            carriers = asked.carriers
            values = (carriers.attention[head], carriers.ablated.right[head], carriers.exchanged.followed[head])
            cells += [f"{value:.3f}" for value in values]
            cells[-1] += " *" if carriers.found[head] else "  "
        out.add_row(f"{head[0]}.{head[1]}", *cells)
    return out


def _together(measured: Measured) -> Table:
    title = (
        "heads together: right answers without them; answers of the other and of the own context with them exchanged"
    )
    out = Table("question", "heads", title=title, title_justify="left")
    for name in ("without", "other", "own"):
        out.add_column(name, justify="right")
    for kind, asked in measured.asked().items():
        out.add_row(kind, "as it is", f"{asked.carriers.plain.right:.3f}", "", "")
        for heads, (ablated, exchanged) in asked.carriers.together.items():
            values = (ablated.right, exchanged.followed, exchanged.right)
            out.add_row("", heads, *(f"{value:.3f}" for value in values))
    return out


def draw(measured: Measured, word: str) -> Any:
    """A figure: vectors of one ambiguous noun at three depths, what vectors tell by depth, and what heads carry."""
    figure = plots.library().figure(figsize=(11, 7.5))
    above, below = figure.subfigures(2, height_ratios=(1, 1.1))
    sites = list(measured.sense.vectors)
    mixed = next(site for site in sites if site.endswith("residual_mid"))
    panels = above.subplots(1, 3)
    for axes, site in zip(panels, (sites[0], mixed, sites[-1]), strict=True):
        _scatter(axes, measured.sense, site, word)
    above.legend(*panels[-1].get_legend_handles_labels(), loc="outside lower center", ncols=4, markerscale=2)
    lines, *maps = below.subplots(1, 3, width_ratios=(1.1, 1, 1))
    _lines(lines, measured)
    for axes, (kind, asked) in zip(maps, measured.asked().items(), strict=True):
        _map(axes, asked, kind)
    return figure


def _scatter(axes: Any, asked: Asked, site: str, word: str) -> None:
    """The vectors of a noun in the plane in which they differ most, by sense."""
    rows = asked.questions.group == word
    vectors, right = asked.vectors[site][rows], asked.questions.right[rows]
    centred = vectors - vectors.mean(axis=0)
    plane = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    alike = spread(vectors, right * 0) == 0
    for index, sense in enumerate(ENGLISH.ambiguous[word].values()):
        size = 60 * (index + 1) ** 2 if alike else 16  # rings around the one point where all are
        colours = {"facecolors": "none" if alike else plots.COLOURS[index], "edgecolors": plots.COLOURS[index]}
        axes.scatter(*plane[right == index].T, s=size, label=sense.name, linewidths=1.5 if alike else 0, **colours)
    axes.set(title=f"{word}: {_where(site)}{', one point for all' * alike}", xticks=[], yticks=[])
    axes.margins(0.1)


def _lines(axes: Any, measured: Measured) -> None:
    """Accuracy by depth, and a guess's, dotted."""
    for colour, (kind, asked) in zip(plots.COLOURS, measured.asked().items(), strict=False):
        axes.plot(list(asked.accuracy.values()), color=colour, marker="o", label=QUESTIONS[kind])
        axes.axhline(asked.chance, color=colour, linestyle=":", linewidth=1)
    labels = [_where(site) for site in measured.sense.accuracy]
    axes.set(title="Right answers by the nearest centroid", ylim=(0, 1.05), xticks=range(len(labels)))
    axes.set_xticklabels(labels, rotation=40, ha="right")
    axes.legend(loc="lower right", fontsize="small")


def _map(axes: Any, asked: Asked, kind: str) -> None:
    """Every head's share of answers that follow its exchange, and its attention."""
    followed, attention = asked.carriers.exchanged.followed, asked.carriers.attention
    axes.imshow(followed, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (layer, head), share in np.ndenumerate(followed):
        colour = "white" if share > 0.6 else "black"
        cell = f"{share:.2f}\n({attention[layer, head]:.2f})"
        axes.text(head, layer, cell, ha="center", va="center", color=colour)
    axes.set(title=f"{kind.capitalize()} follows the head (attention)", xlabel="head", ylabel="layer")
    axes.set(xticks=range(followed.shape[1]), yticks=range(followed.shape[0]))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _where(site: str) -> str:
    """A site in words."""
    *_, name = site.split("/")
    return WHERE[name].format(site.split("/")[1])


def _nouns(asked: Asked) -> np.ndarray:
    """The id of each question's noun."""
    return asked.questions.tokens[np.arange(len(asked.questions.noun)), asked.questions.noun]


def _plain(effect: Effect) -> dict[str, Any]:
    return {name: value.tolist() for name, value in effect._asdict().items()}
