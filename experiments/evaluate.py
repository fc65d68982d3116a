"""Measure a trained model on the whole validation split of its run.

python -m experiments.evaluate --workdir=runs/stdlib [--step=latest|best|NUMBER] [--json]
"""

from __future__ import annotations

import json
from functools import partial

import jax
from absl import flags

from experiments import command, writing
from transformer import data, training

WORKDIR = flags.DEFINE_string("workdir", None, "A run of experiments.train.")
STEP = flags.DEFINE_string("step", "latest", "Which checkpoint: latest, best (lowest validation loss) or a number.")
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 32, "Rows evaluated at a time; changes nothing but speed.", lower_bound=1, upper_bound=65_536
)
JSON = flags.DEFINE_boolean("json", False, "Print JSON.")


def main() -> None:
    trained = writing.load(writing.required(WORKDIR), writing.step(STEP.value))
    corpus = data.load(writing.required(WORKDIR) / "data")
    loss_fn = training.next_token(trained.model)
    evaluation = jax.jit(partial(training.evaluation_step, loss_fn=loss_fn))
    batches = data.validation_batches(corpus, batch_size=BATCH_SIZE.value)
    results = training.evaluate(evaluation, trained.params, batches, corpus.validation_bytes)
    if JSON.value:
        print(json.dumps({"step": trained.step, **results}))
        return
    print(
        f"step {trained.step}: {results['bits_per_byte']:.4f} bits per byte, loss {results['loss']:.4f} nats per "
        f"token, perplexity {results['perplexity']:.2f}, over {results['tokens']:,.0f} tokens"
    )


if __name__ == "__main__":
    command.run(main)
