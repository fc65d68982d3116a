r"""GPT-2 small, 124,439,808 parameters, on web text, for machines with accelerators.

    python -m experiments.train --config=experiments/configs/gpt2_small.py --workdir=runs/gpt2 \
        --config.data.path=FOLDER_OF_TEXT --config.data.tokenizer.folder=FOLDER_OF_GPT2_TOKENIZER

The tokenizer's folder holds GPT-2's published `vocab.json` and `merges.txt`; without one a vocabulary of the same size
is learned from the text. A step takes 491,520 tokens in micro-batches; raise training.accumulation where memory is
short.

Hardware: one machine of eight 40 GB accelerators, as nanoGPT's run of this size (github.com/karpathy/nanoGPT).
Time: nanoGPT's README gives about four days; this recipe has not been run to its end.
Score: not measured here; nanoGPT reports a validation loss of about 2.85 nats per token on OpenWebText.
"""

import dataclasses

from experiments.experiment import Experiment
from transformer import models
from transformer.data import Data, Tokenizer
from transformer.training import Optimizer, Training


def get_config():
    """The recipe."""
    published = models.get("gpt2-small")
    attention = dataclasses.replace(published.decoder.attention, dropout=0.0)  # no epoch repeats: nothing to regularise
    decoder = dataclasses.replace(published.decoder, attention=attention, dropout=0.0)
    return Experiment(
        model=dataclasses.replace(published, decoder=decoder, dtype="bfloat16", remat="dots_without_batch"),
        data=Data(path="openwebtext", length=1024, validation=0.0005, tokenizer=Tokenizer(vocab=50257)),
        training=Training(
            steps=600_000,
            batch_size=480,
            accumulation=5,
            evaluate_every=1000,
            checkpoint_every=1000,
            optimizer=Optimizer(learning_rate=6e-4, warmup=2000, final=0.1, weight_decay=0.1),
        ),
        prompts=("The mole", "In the chemistry laboratory, a mole", "At the doctor's, a mole"),
    ).mutable()
