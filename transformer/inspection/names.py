"""Our sites under the names that another library's users know.

    names = inspection.tap_names("transformer_lens", model.config)
    names["decoder/3/pattern"]  # blocks.3.attn.hook_pattern
    _, taps = inspection.run(model, params, tokens, capture=names.site("blocks.*.attn.hook_pattern"))
    cache = names.rename(taps)  # {"blocks.0.attn.hook_pattern": [B, H, T, S], ...}

Source of TransformerLens's names: its version 4.3. Its caches of small GPT-2, Llama, Gemma 2, GPT-NeoX, BERT and T5
models hold the same numbers under them, up to rounding, where they hold any: those of BERT and T5 have no
`hook_result`, and that of GPT-NeoX no `hook_rot_q` and `hook_rot_k`.

Where a query may not attend, `hook_attn_scores` is masked and our scores are not yet. A site whose counterpart is
another array altogether has none here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

import jax

from transformer.models.config import ModelConfig, Stack
from transformer.nn.tap import Taps, split

CONVENTIONS = ("transformer_lens",)

_ATTENTION = {
    "query": "hook_q",
    "key": "hook_k",
    "value": "hook_v",
    "scores": "hook_attn_scores",
    "pattern": "hook_pattern",
    "mixed": "hook_z",
    "head_output": "hook_result",
}
_TURNED = {"query": "hook_rot_q", "key": "hook_rot_k"}  # ours have been through the rotation


class Names(Mapping[str, str]):
    """Their name of each of our sites, layers under `*` or by number; iterates over sites with `*`."""

    def __init__(self, table: Mapping[str, str]):
        self._theirs = dict(table)
        self._ours = {name: site for site, name in table.items()}

    def __getitem__(self, site: str) -> str:
        starred, layer = split(site)
        name = self._theirs[starred]
        return name if layer is None else name.replace("*", str(layer))

    def __iter__(self) -> Iterator[str]:
        return iter(self._theirs)

    def __len__(self) -> int:
        return len(self._theirs)

    def site(self, name: str) -> str:
        """Our site of one of their names, with `*` or a number for the layer.

        Raises:
          ValueError: if there is none; it lists the nearest names.
        """
        steps = name.split(".")
        layers = [step for step in steps if step.isdecimal()]
        starred = ".".join("*" if step in layers else step for step in steps)
        if starred not in self._ours or len(layers) > 1:
            near = difflib.get_close_matches(starred, self._ours, n=4, cutoff=0.3) or list(self._ours)[:4]
            raise ValueError(f"no site goes by {name!r}; the nearest names are {', '.join(near)}")
        return self._ours[starred].replace("*", layers[0] if layers else "*")

    def rename(self, taps: Taps) -> dict[str, jax.Array]:
        """Captures by their names, one entry for each layer; what has no counterpart keeps our name."""
        return {self.get(site, site): array for site, array in taps.items()}


def tap_names(convention: str, config: ModelConfig | None = None) -> Names:
    """The names of sites by a convention.

    Args:
      convention: `transformer_lens`.
      config: of the model; None stands for a decoder with positions added to embeddings, such as GPT-2.

    Raises:
      ValueError: if the convention is unknown.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention={convention!r} is unknown; choose one of {', '.join(CONVENTIONS)}")
    if config is None:
        return Names(_stack("decoder", None, "blocks", "attn") | _ends("decoder", None, None))
    if config.encoder is None or config.decoder is None:
        role = "decoder" if config.encoder is None else "encoder"
        return Names(_stack(role, getattr(config, role), "blocks", "attn") | _ends(role, getattr(config, role), config))
    encoder = _stack("encoder", config.encoder, "encoder_blocks", "attn")
    decoder = _stack("decoder", config.decoder, "decoder_blocks", "self_attn")
    crossing = {f"decoder/*/cross/{ours}": f"decoder_blocks.*.cross_attn.{name}" for ours, name in _ATTENTION.items()}
    crossing["decoder/*/cross/output"] = "decoder_blocks.*.cross_attn.hook_out"
    if config.decoder.norm_placement != "post":
        crossing["decoder/*/residual_cross"] = "decoder_blocks.*.hook_resid_mid2"
    final = {f"{role}/final_norm": f"{role}_ln_final.hook_out" for role in ("encoder", "decoder")}
    return Names(encoder | decoder | crossing | final | _logits(config))


def _ends(role: str, stack: Stack | None, config: ModelConfig | None) -> dict[str, str]:
    """The sites of a lone stack outside its layers."""
    table = {f"{role}/positions": "hook_pos_embed"}
    if config is None or not config.token_types:
        # With a norm on the embeddings, their hook_embed comes after it, and ours before.
        table[f"{role}/embedding"] = "embed.hook_out" if stack is not None and stack.embedding_norm else "hook_embed"
    if stack is None or stack.norm_placement != "post":
        table[f"{role}/final_norm"] = "ln_final.hook_out"
    return table | _logits(config)


def _logits(config: ModelConfig | None) -> dict[str, str]:
    """Theirs come before a cap."""
    return {} if config is not None and config.readout.softcap else {"logits": "unembed.hook_out"}


def _stack(role: str, stack: Stack | None, blocks: str, attention: str) -> dict[str, str]:
    """The sites of a stack's layers; None is a pre-norm one whose queries and keys do not turn."""
    heads = _ATTENTION | (_TURNED if stack is not None and stack.position.kind == "rotary" else {})
    table = {ours: f"{attention}.{name}" for ours, name in heads.items()}
    placement = "pre" if stack is None else stack.norm_placement
    # Where a norm follows a half before it is added, their hook_attn_out and hook_mlp_out come after it, ours before.
    table["output"] = f"{attention}.hook_out" if placement == "both" else "hook_attn_out"
    table["mlp/outer"] = "mlp.hook_out" if placement == "both" else "hook_mlp_out"
    table |= {"residual_pre": "hook_resid_pre", "mlp/inner": "mlp.hook_post", "residual_post": "hook_resid_post"}
    if stack is not None and stack.mlp is not None and stack.mlp.experts is not None:
        del table["mlp/inner"]  # theirs is that of one expert; nothing of theirs is the router's logits
    if placement == "post":  # their BERT has the residual in the one, and in the other no scores that give its pattern
        del table["output"], table["scores"]
    elif stack is None or not stack.parallel:
        table["residual_mid"] = "hook_resid_mid"
    return {f"{role}/*/{ours}": f"{blocks}.*.{name}" for ours, name in table.items()}
