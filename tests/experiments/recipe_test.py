"""Overrides on the command line, in a script that prints what they make of a recipe."""

import json

from experiments.experiment import Experiment
from transformer.models import ModelConfig, Stack

PRINT = """
import json
from experiments import command, recipe
CONFIG = recipe.define()
command.run(lambda: print(json.dumps(recipe.build(CONFIG).dictionary())), recipe.check_override)
"""
RECIPE = """
from experiments.experiment import Experiment
from transformer.models import ModelConfig, Stack
def get_config(width="32"):
    return Experiment(model=ModelConfig(vocab=4096, width=int(width), decoder=Stack())).mutable()
"""
OVERRIDES = {  # path: argument, value; every field that may be None is here, and None where it is a value
    "seed": ("7", 7),
    "prompts": ("('a', 'b')", ["a", "b"]),
    "data.suffixes": ("('.rst',)", [".rst"]),
    "data.segments": ("true", True),
    "data.validation": ("0.25", 0.25),
    "data.tokenizer.folder": ("learnt", "learnt"),
    "data.tfds.folder": ("prepared", "prepared"),
    "training.ema": ("0.5", 0.5),
    "training.optimizer.clip": ("None", None),
    "training.optimizer.learning_rate": ("1", 1.0),
    "training.optimizer.schedule": ("constant", "constant"),
    "model.decoder.attention.kv_heads": ("2", 2),
    "model.decoder.attention.head_width": ("6", 6),
    "model.decoder.attention.scale": ("0.5", 0.5),
    "model.decoder.attention.softcap": ("20", 20.0),
    "model.decoder.attention.windows": ("(0, 8)", [0, 8]),
    "model.decoder.mlp.width": ("48", 48),
    "model.readout.softcap": ("30", 30.0),
    "model.init.output": ("0.1", 0.1),
}


def get(tree, path):
    for name in path.split("."):
        tree = tree[name]
    return tree


def test_overrides_have_the_types_of_their_fields_and_mistakes_are_one_line(scripts, tmp_path):
    program, recipe = tmp_path / "print.py", tmp_path / "recipe.py"
    program.write_text(PRINT)
    recipe.write_text(RECIPE)
    start = [str(program), f"--config={recipe}"]
    flags = [f"--config.{path}={argument}" for path, (argument, _) in OVERRIDES.items()]
    refused = {
        "config.model has no field 'widht': the nearest are width": "--config.model.widht=3",
        "config.model.decoder.attention has no field 'head'": "--config.model.decoder.attention.head=3",
        "--config.training.ema=much": "--config.training.ema=much",
        "--config.model.decoder.mlp.width=2.5": "--config.model.decoder.mlp.width=2.5",
        "config.seed=None cannot work: it must be of type int": "--config.seed=None",
        "--config.data.segments=perhaps": "--config.data.segments=perhaps",
        "config.training: training.steps=0 cannot work": "--config.training.steps=0",
    }
    plain, setting, changed, unset, *wrong = scripts(
        [
            start,
            [start[0], f"{start[1]}:64"],
            [*start, *flags],
            [
                *start,
                "--config.training.ema=0.5",
                "--config.training.ema=None",
                "--config.model.decoder.mlp.width=none",
                "--config.initial=None",
                "--config.data.tokenizer.folder=None",
                "--config.data.pairs.validation=None",
                "--config.model.decoder.position.kind=none",
            ],
            *([*start, flag] for flag in refused.values()),
            start[:1],
        ]
    )
    for process in (plain, setting, changed, unset):
        assert process.returncode == 0, process.stderr
    default = Experiment(model=ModelConfig(vocab=4096, width=32, decoder=Stack()))
    assert json.loads(plain.stdout) == json.loads(json.dumps(default.dictionary()))
    assert get(json.loads(setting.stdout), "model.width") == 64
    tree = json.loads(changed.stdout)
    assert {path: get(tree, path) for path in OVERRIDES} == {path: value for path, (_, value) in OVERRIDES.items()}
    tree = json.loads(unset.stdout)
    paths = ("training.ema", "initial", "data.tokenizer.folder", "data.pairs.validation")
    assert [get(tree, path) for path in paths] == [None] * 4 and get(tree, "model.decoder.position.kind") == "none"
    for said, process in zip([*refused, "--config is missing"], wrong, strict=True):
        assert process.returncode == 2, (process.args, process.stderr)
        (line,) = process.stderr.splitlines()
        assert line.startswith("error: ") and said in line
