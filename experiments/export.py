"""Write a trained model as a Hugging Face folder, which `transformers` opens with `from_pretrained`.

python -m experiments.export --workdir=runs/stdlib --to=exported [--step=latest|best|NUMBER] [--family=llama]
"""

from __future__ import annotations

from absl import flags

from experiments import command, loading
from transformer import interop, models

WORKDIR = flags.DEFINE_string("workdir", None, loading.MEANING)
STEP = flags.DEFINE_string("step", "latest", "Which checkpoint: latest, best (lowest validation loss) or a number.")
TO = flags.DEFINE_string("to", None, "The folder to make.")
FAMILY = flags.DEFINE_string("family", None, "The model_type to write; default: the likeliest that has such a model.")


def main() -> None:
    if not TO.value:
        raise ValueError("--to is missing: say which folder to make, such as --to=exported")
    trained = loading.load(loading.required(WORKDIR), loading.step(STEP.value))
    # Texts began with the opening token in a run; whoever opens the folder is to begin them so too.
    tokenizer = trained.tokenizer if trained.experiment is None else trained.tokenizer.with_opening()
    family = interop.save(TO.value, trained.model, trained.params, tokenizer, family=FAMILY.value)
    count = models.ledger(trained.model.config).total
    print(f"{trained.origin}: {count:,} parameters written to {TO.value} as {family}")


if __name__ == "__main__":
    command.run(main)
