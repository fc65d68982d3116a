"""The default decoder with experts: eight of half its feed-forward width, of which a token uses two.

    python -m experiments.train --config=experiments/configs/stdlib_experts.py --workdir=runs/experts

PENDING
"""

from experiments.experiment import Experiment
from transformer.data import Data, Tokenizer
from transformer.models import Attention, Experts, Mlp, ModelConfig, Stack
from transformer.training import Optimizer, Training


def get_config():
    """The recipe."""
    mlp = Mlp(width=256, experts=Experts(count=8, active=2))
    return Experiment(
        model=ModelConfig(
            vocab=2048,
            width=192,
            length=256,
            unroll=4,
            decoder=Stack(depth=4, attention=Attention(heads=4), mlp=mlp),
        ),
        data=Data(length=256, tokenizer=Tokenizer(vocab=2048)),
        training=Training(
            steps=900,
            batch_size=8,
            evaluate_every=450,
            checkpoint_every=450,
            optimizer=Optimizer(name="muon", learning_rate=5e-3, warmup=50, weight_decay=0.05),
        ),
        prompts=("The list methods", "import os\n", "def __init__(self, "),
    ).mutable()
