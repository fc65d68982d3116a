"""The default: a small decoder on the Python standard library's own documentation and source.

    python -m experiments.train --config=experiments/configs/stdlib.py --workdir=runs/stdlib

2.2 million parameters see 1.8 million tokens, about two thirds of the text once.

Hardware: two CPU cores.
Time: about 4 minutes, the text and two evaluations included.
Score: 1.665 bits per byte on the held-out tenth of the documents (Python 3.11; the text differs between versions).
"""

from experiments.experiment import Experiment
from transformer.data import Data, Tokenizer
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
            decoder=Stack(depth=4, attention=Attention(heads=4), mlp=Mlp(width=512)),
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
