r"""English to German on WMT 2014, by the base and the big model of "Attention Is All You Need".

    python -m experiments.train --config=experiments/configs/translate_wmt14.py --workdir=runs/wmt14
    python -m experiments.train --config=experiments/configs/translate_wmt14.py:big --workdir=runs/wmt14-big
    python -m experiments.evaluate --workdir=runs/wmt14 --average=5 --pairs=tfds:wmt14_translate/de-en@test

The data set has to be prepared once; where it is not, the first command says how.

Hardware: eight GPUs, as published (Vaswani et al. 2017, arXiv:1706.03762, sections 5.1 to 5.4 and 6.1).
Time: 100,000 steps of the base model took its authors 12 hours and 300,000 of the big one three and a half days.
Score: published are 27.3 BLEU for `:base` and 28.4 for `:big` on newstest2014; neither was trained here.
"""

import dataclasses

from experiments.experiment import Experiment
from transformer import models
from transformer.data import Data, Objective, Pairs, Tfds, Tokenizer
from transformer.training import Optimizer, Training

SETTINGS = ("base", "big")
STEPS = {"base": 100_000, "big": 300_000}
KEPT = {"base": 5, "big": 20}  # checkpoints, which the authors averaged


def get_config(setting: str = "base"):
    """The recipe of a size."""
    if setting not in SETTINGS:
        raise ValueError(f"setting {setting!r} is unknown: choose one of {', '.join(SETTINGS)}")
    model = models.get(f"transformer-{setting}")
    # The schedule of section 5.3, width^-0.5 min(step^-0.5, step warmup^-1.5), by its peak.
    warmup = 4000
    return Experiment(
        model=dataclasses.replace(model, dtype="bfloat16"),
        data=Data(
            path="tfds:wmt14_translate/de-en",
            objective=Objective("pairs"),
            length=256,
            tokenizer=Tokenizer(vocab=37_000),
            tfds=Tfds(split="train"),
            pairs=Pairs(source="en", target="de", validation="tfds:wmt14_translate/de-en@validation", misfits="drop"),
        ),
        training=Training(
            steps=STEPS[setting],
            batch_size=8,
            batch_tokens=25_000,
            label_smoothing=0.1,
            evaluate_every=2000,
            checkpoint_every=1500,
            keep=KEPT[setting],
            optimizer=Optimizer(
                learning_rate=(model.width * warmup) ** -0.5,
                schedule="inverse_sqrt",
                warmup=warmup,
                beta2=0.98,
                epsilon=1e-9,
                clip=None,
            ),
        ),
        prompts=("The animal didn't cross the street because it was too tired.",),
    ).mutable()
