r"""BERT's masked language model at its published size, on text of your own.

    python -m experiments.train --config=experiments/configs/bert_base.py --workdir=runs/bert --config.data.path=FOLDER
    python -m experiments.train --config=experiments/configs/bert_base.py --workdir=runs/bert \
        --config.data.path=tfds:wiki40b/en

Devlin et al. 2019 (arXiv:1810.04805), section 3 and appendix A.2, without the prediction of next sentences, as Liu et
al. 2019 (arXiv:1907.11692, section 4.2) found it better. The tokenizer is byte-level BPE trained on the text; with
`--config.initial=FOLDER` training goes on from a published BERT with its own. Beside the published encoder stands the
read-out that it was trained with: a dense layer, GELU and a norm before the tied embedding.

Hardware: 16 TPU chips in the paper; one GPU of 80 GB holds the batch in 8 micro-batches.
Time: four days in the paper, for 1,000,000 steps.
Score: not trained here; RoBERTa's table 3 has a perplexity of 3.99 after 1,000,000 steps of 256 rows.
"""

import dataclasses

from experiments.experiment import Experiment
from transformer import models
from transformer.data import Data, Objective, Tokenizer
from transformer.models import Readout
from transformer.training import Optimizer, Training


def get_config():
    """The recipe."""
    model = models.get("bert-base")
    return Experiment(
        model=dataclasses.replace(
            model, readout=Readout(transform=True, bias=True), token_types=0, pooler=False, dtype="bfloat16"
        ),
        data=Data(length=512, objective=Objective("masked"), tokenizer=Tokenizer(vocab=model.vocab)),
        training=Training(
            steps=1_000_000,
            batch_size=256,
            accumulation=8,
            evaluate_every=10_000,
            checkpoint_every=10_000,
            optimizer=Optimizer(
                learning_rate=1e-4,
                schedule="warmup_stable_decay",
                warmup=10_000,
                decay=0.99,
                beta2=0.999,
                epsilon=1e-6,
                weight_decay=0.01,
            ),
        ),
    ).mutable()
