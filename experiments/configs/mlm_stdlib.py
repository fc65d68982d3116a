"""Fill in masked tokens of the Python standard library's documentation and source: BERT's objective, small.

    python -m experiments.train --config=experiments/configs/mlm_stdlib.py --workdir=runs/mlm
    python -m experiments.evaluate --workdir=runs/mlm
    python -m experiments.generate --workdir=runs/mlm --prompt="The list[MASK]append adds an item."

Hardware: two CPU cores.
Time: TODO
Score: TODO
"""

from experiments.experiment import Experiment
from transformer.data import Data, Objective, Tokenizer
from transformer.models import Attention, Mlp, ModelConfig, Stack
from transformer.training import Optimizer, Training


def get_config():
    """The recipe."""
    return Experiment(
        model=ModelConfig(
            vocab=2048,
            width=192,
            length=256,
            unroll=4,
            encoder=Stack(depth=4, attention=Attention(heads=4), mlp=Mlp(width=512)),
        ),
        data=Data(length=256, objective=Objective("masked"), segments=True, tokenizer=Tokenizer(vocab=2048)),
        training=Training(
            steps=1500,
            batch_size=8,
            evaluate_every=500,
            checkpoint_every=500,
            optimizer=Optimizer(name="muon", learning_rate=5e-3, warmup=50, weight_decay=0.05),
        ),
        prompts=("import os[MASK]path", "The list[MASK]append() adds an item."),
    ).mutable()
