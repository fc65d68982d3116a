"""Restore corrupted spans of the Python standard library's documentation and source: T5's objective, small.

    python -m experiments.train --config=experiments/configs/span_stdlib.py --workdir=runs/spans
    python -m experiments.evaluate --workdir=runs/spans
    python -m experiments.generate --workdir=runs/spans --greedy --prompt="import os<extra_id_0>path"

Hardware: two CPU cores, without AVX-512.
Time: 13.4 minutes of CPU time, text and evaluations included; 9 minutes 21 s on cores that other programs shared.
Score: 26.9% of the tokens of held-out targets right, sentinels included, and a perplexity of 99.8. The loss was
still falling, from 4.84 nats at step 250 to 4.60 at step 500: `--config.training.steps=1500` learns on.
"""

from experiments.experiment import Experiment
from transformer.data import Data, Objective, Tokenizer
from transformer.models import Attention, Mlp, ModelConfig, Position, Stack
from transformer.training import Optimizer, Training


def get_config():
    """The recipe."""
    stack = Stack(depth=3, attention=Attention(heads=4), mlp=Mlp(width=512), position=Position("relative"))
    return Experiment(
        model=ModelConfig(vocab=2048, width=192, length=256, unroll=3, encoder=stack, decoder=stack),
        data=Data(length=256, objective=Objective("spans"), segments=True, tokenizer=Tokenizer(vocab=2048)),
        training=Training(
            steps=500,
            batch_size=8,
            evaluate_every=250,
            checkpoint_every=250,
            optimizer=Optimizer(name="muon", learning_rate=5e-3, warmup=50, weight_decay=0.05),
        ),
        prompts=("import os\n\ndef main<extra_id_0>:\n    return os.path.join(root, name)\n",),
    ).mutable()
