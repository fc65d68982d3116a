"""GPT-2 small for many: requests of unequal lengths served as rows become free, and decoding with a draft."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmarks import peers, sizes
from experiments.benchmarks.contest import HUGGING_FACE, Case, Program, Settings
from transformer import models

DECODING = ("transformer.decoding",)
DRAFT_DEPTH, PROPOSALS = 2, 4  # the layers that a draft has at most


def serve(settings: Settings) -> list[Case]:
    """Requests of 8 to 64 tokens, eight at a time: continuous batching beside batches that wait for their longest."""
    count, most = settings.choose(32, 128, 3), settings.choose(64, 64, 4)
    slots, prompt = settings.choose(8, 8, 2), settings.choose(16, 16, 4)
    found = []
    for precision in settings.precisions:
        arguments = {
            "tiny": settings.tiny, "count": count, "most": most, "slots": slots, "prompt": prompt,
            "precision": precision, "device": settings.device,
        }  # fmt: skip
        programs = [
            Program("ours", "serving:our_service", arguments, DECODING),
            Program("ours, fixed batches", "serving:our_batches", arguments, DECODING),
            Program("transformers, fixed batches", "serving:hugging_face_batches", arguments, HUGGING_FACE),
        ]
        total = int(_lengths(count, most).sum())
        found.append(Case("serve", precision, programs, total, "tokens", repeats=3))
    return found


def speculative(settings: Settings) -> list[Case]:
    """A draft of two layers that is always right, the most there is to gain, and the same model without one.

    The draft is the model's own first layers; the others add nothing, for the matrices that they write with are 0.
    """
    tokens = settings.choose(64, 128, 4)
    found = []
    for precision in settings.precisions:
        for name, proposals in (("speculative, batch 1", PROPOSALS), ("no draft, batch 1", 0)):
            arguments = {
                "tiny": settings.tiny, "tokens": tokens, "precision": precision, "device": settings.device,
                "proposals": proposals,
            }  # fmt: skip
            programs = [
                Program("ours", "serving:our_draft", arguments, DECODING),
                Program("transformers", "serving:hugging_face_draft", arguments, HUGGING_FACE),
            ]
            found.append(Case(name, precision, programs, tokens, "tokens"))
    return found


def our_service(count: int, most: int, slots: int, prompt: int, **model: Any) -> Callable[[], Any]:
    """`decoding.serve.serve`."""
    from transformer.decoding.serve import Request, serve

    network, params = _ours(**model)
    prompts, lengths = _prompts(network.config.vocab, count, prompt), _lengths(count, most)
    requests = [Request(row, int(length)) for row, length in zip(prompts, lengths, strict=True)]

    def program() -> None:
        responses = serve(network, params, requests, capacity=prompt + most, slots=slots)
        answered, asked = sum(len(response.tokens) for response in responses), int(lengths.sum())
        if answered != asked:
            raise RuntimeError(f"{answered} tokens came back of {asked}")

    return program


def our_batches(count: int, most: int, slots: int, prompt: int, **model: Any) -> Callable[[], Any]:
    """`decoding.generate` for as many requests as there are slots, again and again."""
    import jax

    from transformer import decoding

    network, params = _ours(**model)

    def write(rows: np.ndarray, length: int) -> None:
        jax.block_until_ready(decoding.generate(network, params, rows, length=length, capacity=prompt + most))

    return _in_batches(write, _prompts(network.config.vocab, count, prompt), _lengths(count, most), slots)


def hugging_face_batches(
    count: int, most: int, slots: int, prompt: int, tiny: bool, precision: str, device: str
) -> Callable[[], Any]:
    """`generate` of `transformers`, likewise."""
    torch, place, wait = peers.torch(device)
    from experiments.benchmarks.hugging_face import gpt2

    network = gpt2(sizes.config("gpt2", tiny=tiny), precision).to(place)

    def write(rows: np.ndarray, length: int) -> None:
        ids = torch.from_numpy(rows).long().to(place)
        options = {"do_sample": False, "attention_mask": torch.ones_like(ids)}
        with torch.inference_mode():
            wait(network.generate(ids, max_new_tokens=length, min_new_tokens=length, **options))

    return _in_batches(write, _prompts(network.config.vocab_size, count, prompt), _lengths(count, most), slots)


def our_draft(tokens: int, proposals: int, **model: Any) -> Callable[[], Any]:
    """`decoding.speculate`, which notes the share of proposals that are accepted; with none `decoding.generate`."""
    import jax

    from transformer import decoding

    pair = _our_pair(**model)
    ids = _prompts(pair[0].config.vocab, 1, 8)

    def alone() -> None:
        jax.block_until_ready(decoding.generate(*pair[:2], ids, length=tokens))

    def program() -> dict[str, float]:
        found = jax.block_until_ready(decoding.speculate(*pair, ids, length=tokens, proposals=proposals))
        return {"accepted": float(found.accepted.sum() / found.proposed.sum())}

    return program if proposals else alone


def hugging_face_draft(tokens: int, proposals: int, tiny: bool, precision: str, device: str) -> Callable[[], Any]:
    """`generate` of `transformers` with an assistant, which proposes as many tokens however sure it is; or without."""
    torch, place, wait = peers.torch(device)
    from experiments.benchmarks.hugging_face import gpt2

    config = sizes.config("gpt2", tiny=tiny)
    depth = _draft_depth(config)
    network = gpt2(config, precision).to(place)
    with torch.no_grad():
        for block in network.transformer.h[depth:]:
            for parameter in (*block.attn.c_proj.parameters(), *block.mlp.c_proj.parameters()):
                parameter.zero_()
    draft = gpt2(sizes.config("gpt2", tiny=tiny, depth=depth), precision).to(place)
    draft.load_state_dict(network.state_dict(), strict=False)  # the draft has no place for the further layers
    draft.generation_config.num_assistant_tokens = proposals
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0  # else it stops where it is not sure
    ids, read = torch.from_numpy(_prompts(config.vocab, 1, 8)).long().to(place), []
    options = {"do_sample": False, "attention_mask": torch.ones_like(ids), "max_new_tokens": tokens}
    if proposals:
        options["assistant_model"] = draft
        note = lambda module, inputs, named: read.append(named["input_ids"].shape[1])  # noqa: E731
        network.register_forward_pre_hook(note, with_kwargs=True)

    def program() -> dict[str, float]:
        read.clear()
        with torch.inference_mode():
            wait(network.generate(ids, min_new_tokens=tokens, **options))
        if not proposals:
            return {}
        # A pass reads the token before, or the prompt, and proposals; it gives those that it accepts, and one more.
        proposed = sum(read) - ids.shape[1] - (len(read) - 1)
        return {"accepted": (tokens - len(read)) / proposed}

    return program


def _draft_depth(config: models.ModelConfig) -> int:
    """Layers of a draft: fewer than the model's."""
    return min(DRAFT_DEPTH, config.decoder.depth - 1)


def _our_pair(**model: Any) -> tuple[models.Transformer, dict, models.Transformer, dict]:
    """A model whose last layers add nothing, and a draft that is the others."""
    import jax

    network, params = _ours(**model)
    config, decoder = network.config, params["decoder"]
    depth = _draft_depth(config)

    def silenced(path: tuple, leaf: jax.Array) -> jax.Array:
        return leaf.at[depth:].set(0) if {"output", "down"} & {step.key for step in path} else leaf

    params = {**params, "decoder": {**decoder, "blocks": jax.tree_util.tree_map_with_path(silenced, decoder["blocks"])}}
    first = jax.tree.map(lambda leaf: leaf[:depth], decoder["blocks"])
    shallow = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, depth=depth))
    return network, params, models.Transformer(shallow), {**params, "decoder": {**decoder, "blocks": first}}


def _ours(tiny: bool, precision: str, device: str) -> tuple[models.Transformer, dict]:
    import jax
    import jax.numpy as jnp

    network = models.Transformer(sizes.config("gpt2", tiny=tiny, dtype=precision, param_dtype=precision))
    return network, jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def _in_batches(write: Callable, prompts: np.ndarray, lengths: np.ndarray, slots: int) -> Callable[[], None]:
    def program() -> None:
        for first in range(0, len(prompts), slots):
            write(prompts[first : first + slots], int(lengths[first : first + slots].max()))

    return program


def _prompts(vocab: int, count: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab, (count, length), np.int32)


def _lengths(count: int, most: int) -> np.ndarray:
    return np.random.default_rng(1).integers(most // 8 or 1, most + 1, count)
