"""The configuration of training: frozen dataclasses, checked when they are built. Every default stands here once."""

from __future__ import annotations

import dataclasses
import math

# The fields, beyond those that every optimizer has, that each one reads.
OPTIMIZERS = {
    "adamw": ("beta1", "beta2", "epsilon"),
    "adafactor": (),
    "lion": ("beta1", "beta2"),
    "muon": ("beta1", "beta2", "epsilon", "momentum"),
    "sgd": ("momentum",),
}
SCHEDULES = {
    "constant": (),
    "inverse_sqrt": (),
    "cosine": ("final",),
    "warmup_stable_decay": ("decay", "final"),
}


ON_SAVE_ERROR = {"stop": "ends the run", "continue": "goes on, and tries again at the next checkpoint"}


def _require(condition: bool, field: str, value: object, fix: str) -> None:
    if not condition:
        raise ValueError(f"{field}={value!r} cannot work: {fix}")


def _one_of(field: str, value: str, choices: dict) -> None:
    _require(value in choices, field, value, f"choose one of {', '.join(choices)}")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What turns gradients into updates, and the learning rate over time (see `optimizers` and `schedules`)."""

    name: str = "adamw"
    learning_rate: float = 1e-3  # the peak
    schedule: str = "cosine"
    warmup: int = 0  # steps of linear rise to the peak
    decay: float = 0.2  # warmup_stable_decay: the share of all steps that the fall takes
    final: float = 0.0  # cosine, warmup_stable_decay: the share of the peak at the last step
    weight_decay: float = 0.0  # decoupled: each step takes learning rate * weight_decay of every matrix away
    clip: float | None = 1.0  # the largest global norm of the gradient; None: any
    beta1: float = 0.9  # adamw, lion and muon's AdamW: decay of the mean of gradients
    beta2: float = 0.95  # the same three: decay of the mean of squares (AdamW) or of the momentum (Lion)
    epsilon: float = 1e-8  # adamw and muon's AdamW: added to the root of the mean of squares
    momentum: float = 0.95  # sgd and muon

    def __post_init__(self):
        _one_of("optimizer.name", self.name, OPTIMIZERS)
        _one_of("optimizer.schedule", self.schedule, SCHEDULES)
        rate = self.learning_rate
        _require(0 < rate < math.inf, "optimizer.learning_rate", rate, "it must be positive and finite")
        _require(self.warmup >= 0, "optimizer.warmup", self.warmup, "it counts steps: 0 or more")
        if self.schedule == "inverse_sqrt":
            _require(self.warmup > 0, "optimizer.warmup", self.warmup, "inverse_sqrt peaks at its end: 1 or more")
        _require(0 < self.decay <= 1, "optimizer.decay", self.decay, "it is a share of the steps, in (0, 1]")
        _require(0 <= self.final <= 1, "optimizer.final", self.final, "it is a share of the peak, in [0, 1]")
        _require(
            0 <= self.weight_decay < math.inf,
            "optimizer.weight_decay",
            self.weight_decay,
            "it must be finite, 0 or more",
        )
        _require(self.clip is None or self.clip > 0, "optimizer.clip", self.clip, "it must be positive, or None")
        for name in ("beta1", "beta2", "momentum"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"optimizer.{name}", value, "it is at least 0 and below 1")
        _require(0 < self.epsilon < math.inf, "optimizer.epsilon", self.epsilon, "it must be positive and finite")
        self._refuse_unread("name", OPTIMIZERS)
        self._refuse_unread("schedule", SCHEDULES)

    def _refuse_unread(self, choice: str, table: dict[str, tuple[str, ...]]) -> None:
        """Refuses a field that was set but that the chosen optimizer or schedule would ignore."""
        chosen = getattr(self, choice)
        optional = {name for names in table.values() for name in names}
        for field in dataclasses.fields(self):
            if field.name in optional and field.name not in table[chosen]:
                value = getattr(self, field.name)
                fix = f"{choice}={chosen!r} does not read it; leave it at {field.default}"
                _require(value == field.default, f"optimizer.{field.name}", value, fix)


@dataclasses.dataclass(frozen=True)
class Training:
    """How long, on how much at a time, towards what, and what is written down on the way."""

    steps: int = 1000
    batch_size: int = 32  # rows of the global batch, however many devices share them
    batch_tokens: int = 0  # pairs: places of either side in a batch, of some multiple of batch_size rows; 0: one such
    accumulation: int = 1  # micro-batches that each device takes one after the other in one step
    optimizer: Optimizer = Optimizer()
    label_smoothing: float = 0.0
    z_loss: float = 0.0  # weight of the squared log of the softmax's normaliser
    loss_chunk: int = 0  # positions whose logits exist at one time; 0: all, or some where logits are many
    ema: float | None = None  # decay of the moving average of parameters; None: no average
    evaluate_every: int = 500  # steps
    checkpoint_every: int = 500  # steps
    keep: int = 2  # last checkpoints kept, beside the best
    log_every: int = 10  # steps
    head_metrics_every: int = 0  # steps between measurements of every head; 0: none
    skips: int = 3  # bad steps in a row, not finite or a spike, that are left out before training rolls back
    spike: float | None = None  # a gradient norm of so many times the running mean is bad; None: any that is finite
    rollbacks: int = 2  # times that training goes back to the last checkpoint, past the data that was bad
    fingerprint_every: int = 100  # steps between comparisons of what devices hold copies of; 0: never
    on_save_error: str = "stop"  # when a checkpoint cannot be written

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulation", "evaluate_every", "checkpoint_every", "keep", "log_every"):
            _require(getattr(self, name) > 0, f"training.{name}", getattr(self, name), "it must be positive")
        _require(
            self.batch_tokens >= 0, "training.batch_tokens", self.batch_tokens, "it must be positive, or 0 for none"
        )
        for name in ("head_metrics_every", "fingerprint_every"):
            every = getattr(self, name)
            _require(every >= 0, f"training.{name}", every, "it counts steps, or is 0 for never")
        for name in ("skips", "rollbacks"):
            _require(getattr(self, name) >= 0, f"training.{name}", getattr(self, name), "it must be 0 or more")
        _require(self.spike is None or self.spike > 1, "training.spike", self.spike, "it must exceed 1, or be None")
        _one_of("training.on_save_error", self.on_save_error, ON_SAVE_ERROR)
        fits = self.batch_size % self.accumulation == 0
        fix = f"it must divide training.batch_size={self.batch_size}"
        _require(fits, "training.accumulation", self.accumulation, fix)
        smoothing = self.label_smoothing
        _require(0 <= smoothing < 1, "training.label_smoothing", smoothing, "it is at least 0 and below 1")
        _require(self.z_loss >= 0, "training.z_loss", self.z_loss, "it must not be negative")
        fix = "it must be positive, or 0 for what suits the batch"
        _require(self.loss_chunk >= 0, "training.loss_chunk", self.loss_chunk, fix)
        if self.ema is not None:
            _require(0 < self.ema < 1, "training.ema", self.ema, "it lies between 0 and 1, or is None")
        self._check_schedule()

    def _check_schedule(self) -> None:
        warmup, decay = self.optimizer.warmup, self.optimizer.decay
        _require(warmup <= self.steps, "optimizer.warmup", warmup, f"it must not exceed training.steps={self.steps}")
        if self.optimizer.schedule == "warmup_stable_decay":
            fix = f"with warmup={warmup} the fall does not fit into training.steps={self.steps}"
            _require(warmup + round(decay * self.steps) <= self.steps, "optimizer.decay", decay, fix)
