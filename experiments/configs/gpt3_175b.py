r"""GPT-3 175B: sequences of 2,048 tokens, batches of 3.1 million, for a pod.

    python -m launch.plan --config=experiments/configs/gpt3_175b.py --topology=v5p:8x8x16 --mesh=fsdp=128,tensor=8
    python -m experiments.train --config=experiments/configs/gpt3_175b.py --workdir=/mnt/BUCKET/gpt3 \
        --config.data.path=FOLDER_OF_TEXT --config.data.tokenizer.folder=FOLDER_OF_GPT2_TOKENIZER \
        --mesh=fsdp=128,tensor=8

Batch, learning rate, clipping, weight decay and Adam's constants are those of Brown et al. 2020 (arXiv:2005.14165),
section 2.1 and appendix B. All layers here attend to all earlier positions; the published ones alternate with locally
banded sparse patterns.

Hardware: planned for 1,024 TPU v5p chips; the plan says what fits and how long a step takes at least.
Time: not trained here; a step takes that machine 9.5 s at least, so that 95,000 steps, the paper's 300 billion tokens,
take more than 10 days.
Score: not measured here.
"""

import dataclasses

from experiments.experiment import Experiment
from transformer import models
from transformer.data import Data, Tokenizer
from transformer.training import Optimizer, Training


def get_config():
    """The recipe."""
    return Experiment(
        model=dataclasses.replace(models.get("gpt3-175b"), dtype="bfloat16", remat="full"),
        data=Data(path="openwebtext", length=2048, validation=0.0005, tokenizer=Tokenizer(vocab=50257)),
        training=Training(
            steps=95_000,
            batch_size=1536,
            evaluate_every=1000,
            checkpoint_every=500,
            optimizer=Optimizer(
                learning_rate=6e-5, warmup=120, final=0.1, weight_decay=0.1, clip=1.0, beta1=0.9, beta2=0.95
            ),
        ),
        prompts=("The mole", "In the chemistry laboratory, a mole"),
    ).mutable()
