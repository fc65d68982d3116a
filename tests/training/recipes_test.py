from transformer.training import recipes

SAVED = {
    "config": {"seed": 1, "model": {"width": 8, "windows": [1, 2]}, "training": {"steps": 5, "keep": 2}},
    "data": "a",
}


def changed(**training):
    return SAVED | {"config": SAVED["config"] | {"training": SAVED["config"]["training"] | training}}


def test_the_same_recipe_may_resume_and_tuples_are_lists():
    assert recipes.compare(SAVED, SAVED) == {}
    model = {"width": 8, "windows": (1, 2)}
    assert recipes.compare(SAVED, SAVED | {"config": SAVED["config"] | {"model": model}}) == {}


def test_every_difference_names_its_field():
    current = {
        "config": {"seed": 2, "model": {"width": 8, "depth": 3}, "training": SAVED["config"]["training"]},
        "data": "b",
    }
    assert list(recipes.compare(SAVED, current).values()) == [
        "config.model.depth was absent, now 3",
        "config.model.windows was [1, 2], now absent",
        "config.seed was 1, now 2",
        'data was "a", now "b"',
    ]


def test_length_and_cadence_may_change_but_only_of_training():
    assert recipes.compare(SAVED, changed(steps=9, keep=1, log_every=3)) == {}
    said = {"config.training.batch_size": "config.training.batch_size was absent, now 3"}
    assert recipes.compare(SAVED, changed(batch_size=3)) == said
    assert recipes.compare({"steps": 1}, {"steps": 2}) == {"steps": "steps was 1, now 2"}


def test_an_empty_part_is_a_value():
    changes = recipes.compare({"a": {}}, {"a": {"b": 1}})
    assert changes == {"a": "a was {}, now absent", "a.b": "a.b was absent, now 1"}


def test_fields_have_dotted_names():
    names = ["config.model.width", "config.model.windows", "config.seed", "config.training.keep"]
    assert recipes.fields(SAVED) == [*names, "config.training.steps", "data"]


def test_versions_are_told():
    assert {"python", "jax", "flax", "optax", "orbax-checkpoint"} <= recipes.versions().keys()
