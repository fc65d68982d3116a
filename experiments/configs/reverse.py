r"""Letters in reverse order: sequence to sequence on pairs that a program makes, without any file.

    python -m experiments.train --config=experiments/configs/reverse.py --workdir=runs/reverse
    python -m experiments.evaluate --workdir=runs/reverse --pairs=task:reverse:17-24
    python -m experiments.train --config=experiments/configs/reverse.py:rotary ...

Hardware: two CPU cores.
Time: TODO
Score: TODO
"""

from experiments.experiment import Experiment
from transformer.data import Data, Objective, Tokenizer
from transformer.models import Attention, Mlp, ModelConfig, Position, Stack
from transformer.training import Optimizer, Training

SETTINGS = ("sinusoidal", "learned", "rotary", "relative", "alibi", "none")  # how the stacks know order


def get_config(setting: str = "sinusoidal"):
    """The recipe with a kind of positions."""
    if setting not in SETTINGS:
        raise ValueError(f"setting {setting!r} is unknown: choose one of {', '.join(SETTINGS)}")
    stack = Stack(depth=2, attention=Attention(heads=4), mlp=Mlp(width=192), position=Position(setting))
    return Experiment(
        model=ModelConfig(vocab=28, width=64, length=64, encoder=stack, decoder=stack, unroll=2),
        data=Data(
            path="task:reverse",
            objective=Objective("pairs"),
            length=32,
            validation=0.02,
            tokenizer=Tokenizer(kind="characters", fallback=False, end=True),
        ),
        training=Training(
            steps=2000,
            batch_size=64,
            evaluate_every=1000,
            checkpoint_every=1000,
            optimizer=Optimizer(name="muon", learning_rate=1e-2, warmup=100),
        ),
        prompts=("transformer", "reverse"),
    ).mutable()
