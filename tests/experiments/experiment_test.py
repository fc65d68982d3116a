import dataclasses
import json
import typing

import pytest

from experiments.experiment import Experiment, check_field, without_none
from transformer.data import Data, Objective, Pairs, Tfds, Tokenizer
from transformer.data.config import OBJECTIVES
from transformer.models import Attention, Experts, Init, Mlp, ModelConfig, Position, Readout, Scaling, Stack
from transformer.training import Optimizer, Training

PLAIN = Experiment(model=ModelConfig(vocab=4096, width=32, decoder=Stack()))
FULL = Experiment(
    model=ModelConfig(
        vocab=4096,
        width=32,
        length=64,
        decoder=Stack(
            depth=4,
            attention=Attention(
                heads=4, kv_heads=2, head_width=16, scale=0.5, softcap=30.0, windows=(0, 8), dropout=0.1
            ),
            mlp=Mlp(width=48),
            position=Position(scaling=Scaling(kind="yarn", factor=2.0)),
        ),
        readout=Readout(tied=False, softcap=15.0),
        init=Init(output=0.5),
    ),
    data=Data(
        path="a.txt", length=64, suffixes=(".rst", ".txt"), tokenizer=Tokenizer(folder="b"), tfds=Tfds(folder="c")
    ),
    training=Training(ema=0.99, optimizer=Optimizer(name="muon", clip=None)),
    seed=3,
    prompts=("one", "two"),
)
PAIRED = Experiment(
    model=ModelConfig(vocab=4096, width=32, encoder=Stack(), decoder=Stack()),
    data=Data(path="a.tsv", objective=Objective("pairs"), pairs=Pairs(source="1", target="2", validation="b.tsv")),
)
WITHOUT = dataclasses.replace(PLAIN, model=ModelConfig(vocab=4096, width=32, decoder=Stack(mlp=None)))
ALL = pytest.mark.parametrize(
    "experiment", [PLAIN, FULL, WITHOUT, PAIRED], ids=["plain", "full", "attention only", "pairs"]
)


def leaves(node, path=()):
    """(path, annotation) of every field that is not a dataclass, below those that are not None."""
    hints = typing.get_type_hints(type(node))
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, (*path, field.name))
        elif not dataclasses.is_dataclass(without_none(hints[field.name])):
            yield (*path, field.name), hints[field.name]


OPTIONAL = [(path, kind) for path, kind in leaves(FULL) if without_none(kind) is not kind]


def replaced(tree, path, value):
    """The tree with another value at a path."""
    first, *rest = path
    return {**tree, first: replaced(tree[first], rest, value) if rest else value}


def looked_up(node, path):
    for name in path:
        node = getattr(node, name)
    return node


@ALL
def test_the_mutable_tree_builds_the_experiment_it_came_from(experiment):
    assert Experiment.build(experiment.mutable()) == experiment


@ALL
def test_the_dictionary_survives_json(experiment):
    assert Experiment.build(json.loads(json.dumps(experiment.dictionary()))) == experiment


def test_what_a_tree_leaves_out_has_its_default():
    assert Experiment.build({"model": {"vocab": 4096, "width": 32, "decoder": {}}}) == PLAIN


def test_every_field_that_may_be_none_is_known():
    names = {path[-1] for path, _ in OPTIONAL}
    expected = "kv_heads head_width scale softcap width output clip ema folder magnitude initial spike"
    expected += " source target validation"
    assert set(expected.split()) == names


@pytest.mark.parametrize(("path", "kind"), OPTIONAL, ids=[".".join(path) for path, _ in OPTIONAL])
@pytest.mark.parametrize("start", [PLAIN, FULL], ids=["from default", "from value"])
def test_every_field_that_may_be_none_can_be_set_and_unset(start, path, kind):
    value = 4.0 if path[-1] == "spike" else {int: 2, float: 0.25, str: "folder"}[without_none(kind)]
    for wanted in (value, None, value):
        tree = (PAIRED if "pairs" in path else start).mutable()
        node = looked_up(tree, path[:-1])
        if path[-1] in ("source", "target"):
            node.source = node.target = wanted  # both or neither
        if path[-1] == "magnitude":
            node.kind = "yarn"  # which alone reads it
        node[path[-1]] = wanted
        assert looked_up(Experiment.build(tree), path) == wanted
    with pytest.raises(TypeError):  # the flag library keeps the type, also of a field that was None
        node[path[-1]] = ["a list"]


@pytest.mark.parametrize(
    ("path", "value", "wanted"),
    [
        ("training.steps", "three", "of type int"),
        ("training.steps", 3.0, "of type int"),
        ("training.steps", True, "of type int"),
        ("training.steps", None, "of type int"),
        ("training.ema", "high", "of type float"),
        ("training.optimizer.learning_rate", True, "of type float"),
        ("data.segments", 1, "of type bool"),
        ("data.path", 3, "of type str"),
        ("data.tokenizer.folder", 3, "of type str"),
        ("data.suffixes", ".txt", "of type tuple"),
        ("prompts", ["a", 3], "of type str"),
        ("model.decoder.attention.windows", [0, 1.5], "of type int"),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_path(path, value, wanted):
    with pytest.raises(ValueError, match="cannot work: it must be") as caught:
        Experiment.build(replaced(PLAIN.dictionary(), path.split("."), value))
    assert str(caught.value).startswith(f"config.{path}")
    assert wanted in str(caught.value) and "\n" not in str(caught.value)


def test_a_whole_number_does_for_a_float():
    built = Experiment.build(replaced(PLAIN.dictionary(), ("training", "optimizer", "learning_rate"), 1))
    assert type(built.training.optimizer.learning_rate) is float


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (("modle",), "config has no field 'modle': the nearest are model"),
        (
            ("training", "optimizer", "warm_up"),
            "config.training.optimizer has no field 'warm_up': the nearest are warmup",
        ),
        (("data", "zzz"), "config.data has no field 'zzz': the nearest are length, limit, objective,"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(path, said):
    with pytest.raises(ValueError) as caught:
        Experiment.build(replaced(PLAIN.dictionary(), path, 1))
    assert str(caught.value).startswith(said)


def test_a_single_value_has_no_fields():
    with pytest.raises(ValueError, match=r"config\.seed has no field 'most': it is a single value"):
        check_field("most", {}, "config.seed")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("training.batch_size", 0, "config.training: training.batch_size=0 cannot work"),
        ("model.width", 30, "config.model: decoder.attention.heads=4 cannot work"),
        ("model.decoder.attention.kv_heads", 3, "config.model.decoder.attention: attention.kv_heads=3 cannot work"),
        ("data.length", 2000, "config: data.length=2000 exceeds model.length=1024"),
        ("model.vocab", 4095, "config: model.vocab=4095 is too small for the tokenizer's 4096 entries"),
    ],
)
def test_what_cannot_work_is_refused_by_its_path(path, value, said):
    with pytest.raises(ValueError) as caught:
        Experiment.build(replaced(PLAIN.dictionary(), path.split("."), value))
    assert str(caught.value).startswith(said)


def test_only_a_decoder_alone_predicts_the_next_token():
    for stacks in ({"encoder": Stack()}, {"encoder": Stack(), "decoder": Stack()}):
        with pytest.raises(ValueError, match="needs a decoder alone"):
            Experiment(model=ModelConfig(vocab=4096, width=32, **stacks))


def test_the_vocabulary_is_checked_as_far_as_it_is_known():
    small = ModelConfig(vocab=256, width=32, decoder=Stack())
    for tokenizer in (Tokenizer(kind="characters"), Tokenizer(folder="learnt elsewhere")):
        experiment = Experiment(model=small, data=Data(tokenizer=tokenizer))
        experiment.check_vocabulary(256)
        with pytest.raises(ValueError, match=r"model.vocab=256 is too small .* 257 .*--config.model.vocab=257"):
            experiment.check_vocabulary(257)
    for tokenizer in (Tokenizer(kind="bytes"), Tokenizer(vocab=257)):
        with pytest.raises(ValueError, match=r"model\.vocab=256 is too small"):
            Experiment(model=small, data=Data(tokenizer=tokenizer))


STACKS = {
    "encoder": {"encoder": Stack()},
    "decoder": {"decoder": Stack()},
    "both": {"encoder": Stack(), "decoder": Stack()},
}
NEEDS = {"causal": "decoder", "prefix": "decoder", "masked": "encoder", "spans": "both", "pairs": "both"}


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("stacks", STACKS)
def test_an_objective_and_the_stacks_that_it_needs(kind, stacks):
    model, learning = ModelConfig(vocab=4096, width=32, **STACKS[stacks]), Data(objective=Objective(kind))
    if stacks == NEEDS[kind]:
        assert Experiment(model=model, data=learning).data.objective.kind == kind
        return
    words = {"both": "an encoder and a decoder", "encoder": "an encoder alone", "decoder": "a decoder alone"}
    with pytest.raises(ValueError, match=f"^model: .* needs? {words[NEEDS[kind]]}: set"):
        Experiment(model=model, data=learning)


@pytest.mark.parametrize(("kind", "segments"), [("causal", False), ("spans", True), ("spans", False), ("pairs", True)])
def test_places_of_a_batch_are_counted_only_where_rows_differ_in_length(kind, segments):
    model, config = ModelConfig(vocab=4096, width=32, **STACKS[NEEDS[kind]]), Training(batch_tokens=64)
    with pytest.raises(ValueError, match=r"training\.batch_tokens=64 counts places of pairs that are not packed"):
        Experiment(model=model, data=Data(objective=Objective(kind), segments=segments), training=config)
    both = ModelConfig(vocab=4096, width=32, **STACKS["both"])
    assert Experiment(model=both, data=Data(objective=Objective("pairs")), training=config).training.batch_tokens == 64


def test_each_stack_of_the_initial_model_keeps_the_dropout_of_the_recipe():
    def stack(depth, rate, width):
        return Stack(depth, Attention(dropout=rate), mlp=Mlp(width, dropout=2 * rate), dropout=3 * rate)

    recipe = Experiment(
        model=ModelConfig(
            vocab=8, width=32, encoder=stack(4, 0.1, 8), decoder=stack(4, 0.2, 8), dtype="bfloat16", unroll=4
        ),
        data=Data(objective=Objective("pairs")),
        initial="elsewhere",
    )
    published = ModelConfig(vocab=5000, width=16, encoder=stack(3, 0.0, 24), decoder=stack(2, 0.0, 24))
    model = recipe.beginning_with(published, "elsewhere").model
    assert model == dataclasses.replace(
        published, encoder=stack(3, 0.1, 24), decoder=stack(2, 0.2, 24), dtype="bfloat16", unroll=2
    )
    bare = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, encoder=None))
    assert bare.beginning_with(published, "elsewhere").model.encoder == stack(3, 0.0, 24)  # nothing was said of it
    with pytest.raises(
        ValueError, match="initial='elsewhere', whose model cannot be changed here: model: predicting a"
    ):
        recipe.beginning_with(dataclasses.replace(published, encoder=None), "elsewhere")


def test_the_initial_models_routers_are_trained_as_the_recipe_says():
    def model(**experts):
        return ModelConfig(vocab=5000, width=16, decoder=Stack(2, mlp=Mlp(8, experts=Experts(**experts))))

    recipe = Experiment(model=model(count=2, balance=0.5, router_z=0.25), initial="elsewhere")
    begun = recipe.beginning_with(model(count=4, active=3), "elsewhere").model
    assert begun == model(count=4, active=3, balance=0.5, router_z=0.25)
    dense = dataclasses.replace(recipe, model=ModelConfig(vocab=8, width=32, decoder=Stack()))
    assert dense.beginning_with(model(count=4), "elsewhere").model == model(count=4)
