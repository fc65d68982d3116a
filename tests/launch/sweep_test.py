import pytest

from launch import sweep

COMMAND = ("python", "-m", "experiments.train", "--config=a.py", "--workdir=runs/x")
RATE = "training.optimizer.learning_rate"


def test_without_a_sweep_the_command_is_the_only_run():
    assert sweep.expand(COMMAND[:4]) == [sweep.Run("", COMMAND[:4])]


def test_a_sweep_is_the_product_of_all_each_with_a_folder_of_its_own():
    runs = sweep.expand(COMMAND, [f"{RATE}=1e-3,3e-4", "config.model.width=64,128"], seeds=3)
    assert len(runs) == len({run.name for run in runs}) == 12
    name, command = runs[0]
    assert name == "learning_rate=1e-3,width=64,seed=0"
    overrides = (f"--config.{RATE}=1e-3", "--config.model.width=64", "--config.seed=0")
    assert command == (*COMMAND[:4], f"--workdir=runs/x/{name}", *overrides)
    assert runs[-1].name == "learning_rate=3e-4,width=128,seed=2"


def test_the_folder_may_be_a_word_of_its_own_and_names_hold_nothing_awkward():
    (run, _) = sweep.expand(("t", "--workdir", "runs/x/"), ["data.path=/a b/c.txt,d"])
    assert run == ("path=a-b-c.txt", ("t", "--workdir", "runs/x/path=a-b-c.txt", "--config.data.path=/a b/c.txt"))


def test_names_are_as_long_as_it_takes_to_tell_fields_apart():
    fields = ["model.encoder.depth=1", "model.decoder.depth=2"]
    (run,) = sweep.expand(COMMAND, fields)
    assert run.name == "encoder.depth=1,decoder.depth=2"


def test_commas_in_brackets_part_no_values():
    runs = sweep.expand(COMMAND, ["model.decoder.attention.windows=(4,None),(8,)", "prompts=['a','b'],()"])
    values = [run.command[-2:] for run in runs]
    first = "--config.model.decoder.attention.windows="
    assert values[0] == (f"{first}(4,None)", "--config.prompts=['a','b']")
    assert [one for one, _ in values] == [f"{first}(4,None)"] * 2 + [f"{first}(8,)"] * 2
    assert values[1][1] == "--config.prompts=()"


@pytest.mark.parametrize(
    ("command", "values", "message"),
    [
        ((), [], "the command is missing: put it after --"),
        (COMMAND, ["model.width"], r"--sweep=model.width cannot work: give FIELD=VALUE,VALUE"),
        (COMMAND, ["model.width=64,,128"], "cannot work: give FIELD=VALUE,VALUE"),
        (COMMAND, ["=1"], "cannot work"),
        (COMMAND, ["training.learning_rate=1"], "config.training has no field 'learning_rate': the nearest are"),
        (COMMAND, ["model.width=1", "model.width=2"], "model.width is swept twice"),
        (COMMAND[:4], ["model.width=1"], "a sweep needs --workdir=DIR"),
        (("t", "--workdir="), ["model.width=1"], "a sweep needs --workdir=DIR"),
        (COMMAND, ["data.path=a/b,a b"], "two runs of the sweep would share the folder 'path=a-b'"),
    ],
)
def test_what_cannot_work_is_said(command, values, message):
    with pytest.raises(ValueError, match=message):
        sweep.expand(command, values)
