"""Fill in masked tokens of the Python standard library's documentation and source: BERT's objective, small.

    python -m experiments.train --config=experiments/configs/mlm_stdlib.py --workdir=runs/mlm
    python -m experiments.evaluate --workdir=runs/mlm
    python -m experiments.generate --workdir=runs/mlm --prompt="The list[MASK]append adds an item."

1,500 steps hide 15% of the tokens in 8 rows of 256; a token sees its own document only.

Hardware: two CPU cores.
Time: 12.5 minutes of CPU time, text and evaluations included; 46 minutes on cores that other programs shared.
Score: 39.3% of the masked tokens right and a perplexity of 26.4 on the held-out tenth of the documents (Python 3.11),
where counts of single tokens have 2.7% and 600.8, and counts of neighbours, which know the true token on the left, have
14.3% and 87.0. `evaluate` prints the three side by side.
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
