r"""English to German on the captions of Multi30k, by the small Transformer of a published text-only baseline.

    python -m experiments.train --config=experiments/configs/translate_multi30k.py --workdir=runs/multi30k \
        --config.data.path=multi30k/train.en,multi30k/train.de \
        --config.data.pairs.validation=multi30k/val.en,multi30k/val.de

Hardware: two CPU cores.
Time: ...
Score: ...
"""

from experiments.experiment import Experiment
from transformer.data import Data, Objective, Pairs, Tokenizer
from transformer.models import Attention, Init, Mlp, ModelConfig, Norm, Position, Stack
from transformer.training import Optimizer, Training


def get_config():
    """The recipe."""
    stack = Stack(
        depth=4,
        attention=Attention(heads=4),
        mlp=Mlp(256, "relu", gated=False, bias=True),
        norm=Norm("layer", epsilon=1e-5, bias=True),
        norm_placement="post",
        position=Position("sinusoidal"),
        dropout=0.3,
    )
    return Experiment(
        model=ModelConfig(
            vocab=10_000,
            width=128,
            length=128,
            encoder=stack,
            decoder=stack,
            embedding_scale=True,
            init=Init("xavier", scale=1.0, embedding=128**-0.5, output=1.0),
            unroll=4,
        ),
        data=Data(
            path="train.en,train.de",
            objective=Objective("pairs"),
            length=128,
            tokenizer=Tokenizer(vocab=10_000),
            pairs=Pairs(validation="val.en,val.de"),
        ),
        training=Training(
            steps=8000,
            batch_size=8,
            batch_tokens=4096,
            label_smoothing=0.1,
            evaluate_every=400,
            checkpoint_every=200,
            keep=10,
            optimizer=Optimizer(learning_rate=5e-3, schedule="inverse_sqrt", warmup=2000, beta2=0.98, clip=None),
        ),
        prompts=("a man in a blue shirt is standing on a ladder cleaning a window .",),
    ).mutable()
