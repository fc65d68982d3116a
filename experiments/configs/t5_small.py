r"""T5's span corruption at its smallest published size, on text of your own.

    python -m experiments.train --config=experiments/configs/t5_small.py --workdir=runs/t5 --config.data.path=FOLDER
    python -m experiments.train --config=experiments/configs/t5_small.py --workdir=runs/t5 \
        --config.data.path=tfds:c4/en

Raffel et al. 2020 (arXiv:1910.10683), sections 3.1.2 to 3.1.4: batches of 128 rows of 512 tokens, 2^19 steps, 15% of
tokens in spans of 3 on average, Adafactor at an inverse square root of the step from 0.01 on. The tokenizer is
byte-level BPE trained on the text, with the sentinels that rows of 512 need; with `--config.initial=FOLDER` training
goes on from a published T5 with its own.

Hardware: a slice of TPUs in the paper; one GPU of 80 GB holds the batch in 4 micro-batches.
Time: not measured here.
Score: not trained here; the paper gives scores of downstream tasks only.
"""

import dataclasses

from experiments.experiment import Experiment
from transformer import models
from transformer.data import Data, Objective, Tokenizer
from transformer.training import Optimizer, Training


def get_config():
    """The recipe."""
    model = models.get("t5-small")
    return Experiment(
        model=dataclasses.replace(model, dtype="bfloat16"),
        data=Data(length=512, objective=Objective("spans"), tokenizer=Tokenizer(vocab=model.vocab)),
        training=Training(
            steps=2**19,
            batch_size=128,
            accumulation=4,
            evaluate_every=10_000,
            checkpoint_every=10_000,
            optimizer=Optimizer(
                name="adafactor", learning_rate=1e-2, schedule="inverse_sqrt", warmup=10_000, clip=None
            ),
        ),
    ).mutable()
