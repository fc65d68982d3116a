"""recipe."""

from experiments import generated
from experiments.experiment import Experiment
from transformer.models import Attention, Mlp, ModelConfig, Stack
from transformer.training import Optimizer, Training


def get_config():
    """The recipe."""
    return Experiment(
        model=ModelConfig(
            vocab=207,
            width=64,
            length=28,
            unroll=2,
            decoder=Stack(depth=2, attention=Attention(heads=4), mlp=Mlp(width=256)),
        ),
        data=generated.data("verdant", 28),
        training=Training(
            steps=3000,
            batch_size=64,
            evaluate_every=500,
            checkpoint_every=1000,
            optimizer=Optimizer(learning_rate=3e-3, warmup=100, weight_decay=0.05),
        ),
    ).mutable()
