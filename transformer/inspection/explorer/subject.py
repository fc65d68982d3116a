"""What is looked at: a model, and how its tokens are shown."""

from __future__ import annotations

import dataclasses
from typing import Any

from transformer.inspection.explorer.attentions import Attention, attentions
from transformer.inspection.explorer.packing import Json
from transformer.inspection.explorer.reading import Spell
from transformer.models.config import ModelConfig
from transformer.models.ledger import ledger
from transformer.models.transformer import Transformer


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A model to explore.

    Attributes:
      model, params: as in `inspection.run`.
      spell: how an id is shown.
      origin: what to call it.
      predicts: whether its read-out was trained to predict tokens.
    """

    model: Transformer
    params: Any
    spell: Spell
    origin: str
    predicts: bool = True

    @property
    def config(self) -> ModelConfig:
        """The model's."""
        return self.model.config

    @property
    def attentions(self) -> list[Attention]:
        """The model's."""
        return attentions(self.config)

    @property
    def side(self) -> str:
        """The role of the stack that is read out."""
        return "encoder" if self.config.decoder is None else "decoder"

    def names(self, ids) -> dict[str, str]:
        """How each of these ids is shown, by id; one that is a part of a character as `<0xF0>`."""
        shown = {token: self.spell(token) for token in sorted({int(token) for token in ids})}
        return {str(token): one.text if one.hex is None else f"<0x{one.hex.upper()}>" for token, one in shown.items()}

    def model_json(self) -> Json:
        """Sizes and kinds of the model."""
        config = self.config
        roles = [role for role in ("encoder", "decoder") if getattr(config, role) is not None]
        return {
            "vocab": config.vocab,
            "width": config.width,
            "parameters": ledger(config).total,
            "dtype": config.dtype,
            "length": config.length,
            "predicts": self.predicts,
            "stacks": {role: self._stack_json(role) for role in roles},
        }

    def ledger_json(self) -> Json:
        """Where the parameters are: the tally of the matrices."""
        book = ledger(self.config).tally
        return {"rows": [dataclasses.asdict(row) for row in book.rows], "total": book.total}

    def _stack_json(self, role: str) -> Json:
        config, stack = self.config, getattr(self.config, role)
        return {
            "depth": stack.depth,
            "heads": stack.attention.heads,
            "kv_heads": config.kv_heads(stack),
            "head_width": config.head_width(stack),
            "causal": role == "decoder",
            "crosses": role == "decoder" and config.encoder is not None,
            "position": stack.position.kind,
            "norm_placement": stack.norm_placement,
        }
