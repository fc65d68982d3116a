"""From an objective to a trained model: state, optimizers, the step, devices, checkpoints, metrics, the loop."""

from transformer.training import exits, optimizers, parallel, recipes, schedules
from transformer.training.averaging import average_checkpoints
from transformer.training.checkpoints import FOLDER as CHECKPOINTS
from transformer.training.checkpoints import Checkpoints
from transformer.training.config import Optimizer, Training
from transformer.training.evaluation import evaluate
from transformer.training.exits import NonFinite
from transformer.training.loop import train
from transformer.training.metrics import Writer
from transformer.training.objective import prediction
from transformer.training.progress import Bar
from transformer.training.restoring import load_params, load_recipe
from transformer.training.state import State, create
from transformer.training.step import evaluation_step, train_step

__all__ = [
    "CHECKPOINTS",
    "Bar",
    "Checkpoints",
    "NonFinite",
    "Optimizer",
    "State",
    "Training",
    "Writer",
    "average_checkpoints",
    "create",
    "evaluate",
    "evaluation_step",
    "exits",
    "load_params",
    "load_recipe",
    "optimizers",
    "parallel",
    "prediction",
    "recipes",
    "schedules",
    "train",
    "train_step",
]
