"""Characters of Shakespeare: nanoGPT's small setting (the default), `:ours` at the same size, and `:full`."""

import dataclasses

from experiments.experiment import Experiment
from transformer.data import Data, Tokenizer
from transformer.models import Attention, Mlp, ModelConfig, Norm, Position, Stack
from transformer.training import Optimizer, Training

DATA = Data(path="shakespeare.txt", split="tail", tokenizer=Tokenizer(kind="characters", fallback=False))
GPT = Stack(
    attention=Attention(heads=4),
    mlp=Mlp(gated=False, activation="gelu"),
    norm=Norm(kind="layer", epsilon=1e-5),
    position=Position(kind="learned"),
)
PROMPTS = ("ROMEO:", "To be, or not to", "KING RICHARD III:\n")


def nanogpt() -> Experiment:
    return Experiment(
        model=ModelConfig(vocab=65, width=128, length=64, unroll=4, decoder=GPT),
        data=dataclasses.replace(DATA, length=64),
        training=Training(
            steps=2000,
            batch_size=12,
            optimizer=Optimizer(
                learning_rate=1e-3, warmup=100, final=0.1, beta2=0.99, weight_decay=0.1
            ),
        ),
        prompts=PROMPTS,
    )


def ours() -> Experiment:
    return Experiment(
        model=ModelConfig(vocab=65, width=128, length=64, unroll=4, decoder=Stack(mlp=Mlp(width=352))),
        data=dataclasses.replace(DATA, length=64),
        training=Training(
            steps=2000,
            batch_size=12,
            optimizer=Optimizer(name="muon", learning_rate=8e-3, warmup=100, beta2=0.99, weight_decay=0.1),
        ),
        prompts=PROMPTS,
    )


def full() -> Experiment:
    decoder = dataclasses.replace(GPT, depth=6, dropout=0.2, attention=Attention(heads=6, dropout=0.2))
    return Experiment(
        model=ModelConfig(vocab=65, width=384, length=256, decoder=decoder),
        data=dataclasses.replace(DATA, length=256),
        training=Training(
            steps=5000,
            batch_size=64,
            evaluate_every=250,
            checkpoint_every=250,
            optimizer=Optimizer(
                learning_rate=1e-3, warmup=100, final=0.1, beta2=0.99, weight_decay=0.1
            ),
        ),
        prompts=PROMPTS,
    )


SETTINGS = {"nanogpt": nanogpt, "ours": ours, "full": full}


def get_config(setting: str = "nanogpt"):
    """The recipe of a setting."""
    if setting not in SETTINGS:
        raise ValueError(f"setting {setting!r} is unknown: choose one of {', '.join(SETTINGS)}")
    return SETTINGS[setting]().mutable()
