"""Attention kernels that others wrote for their hardware: cuDNN's for NVIDIA, Splash for TPUs.

Each comes with what it refuses: the reason, in words, why a kernel would not compute exactly what `attention.attend`
defines, or None where it would. Nothing is handed to a kernel that refuses it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transformer.ops.masks import Mask

_HALVES = (jnp.bfloat16, jnp.float16)
_LANES = 128  # of a TPU's vector registers


def cudnn_refuses(query: jax.Array, key: jax.Array, mask: Mask, softcap: float | None) -> str | None:
    """Why cuDNN's kernel cannot take `[B, T, H, K]` and `[B, S, G, K]` on the first device, or None."""
    unknown = mask.parts - {"causal", "window"}
    width, capability = query.shape[3], _capability(jax.devices()[0])
    if query.dtype not in _HALVES:
        return f"it computes in bfloat16 or float16, not {query.dtype}"
    if softcap is not None:
        return "it has no soft cap"
    if unknown:
        return f"it cannot hide keys by {', '.join(sorted(unknown))}"
    if mask.window and not mask.causal:
        return "its windows are causal"
    if mask.causal and query.shape[1] != key.shape[1]:
        return f"its causal mask is square, not {query.shape[1]} queries by {key.shape[1]} keys"
    widest = 256 if capability >= (9, 0) else 128
    if width % 8 or width > widest:
        return f"heads must be a multiple of 8 and at most {widest} wide, not {width}"
    if capability < (8, 0):
        return "it needs an NVIDIA GPU of compute capability 8.0 (Ampere) or later"
    return None


def _capability(device: jax.Device) -> tuple[int, ...]:
    """The compute capability of an NVIDIA GPU, such as `(9, 0)`; `(0,)` of anything else, AMD's GPUs among it."""
    told = str(getattr(device, "compute_capability", ""))
    numbers = told.split(".")
    return tuple(map(int, numbers)) if device.platform == "gpu" and all(map(str.isdigit, numbers)) else (0,)


def cudnn(query: jax.Array, key: jax.Array, value: jax.Array, *, mask: Mask, scale: float | None) -> jax.Array:
    """`[B, T, H, K]` and `[B, S, G, K]` twice to `[B, T, H, K]`, on NVIDIA GPUs from Ampere on."""
    window = (mask.window - 1, 0) if mask.window else None
    return jax.nn.dot_product_attention(
        query, key, value, scale=scale, is_causal=mask.causal, local_window_size=window, implementation="cudnn"
    )


def splash_refuses(query: jax.Array, key: jax.Array, mask: Mask, softcap: float | None) -> str | None:
    """Why Splash attention cannot take `[B, T, H, K]` and `[B, S, G, K]`, or None."""
    unknown = mask.parts - {"causal", "window", "query_segments", "key_segments"}
    length, room = query.shape[1], key.shape[1]
    if query.dtype not in (jnp.float32, jnp.bfloat16):
        return f"it computes in float32 or bfloat16, not {query.dtype}"
    if unknown:
        return f"it cannot hide keys by {', '.join(sorted(unknown))}"
    # A query that sees no key would get a mean of values; one that stands among its own keys sees itself.
    if mask.query_segments is not mask.key_segments:
        return "queries and keys must share their segments"
    if (mask.causal or mask.window) and length != room:
        return f"its causal mask is square, not {length} queries by {room} keys"
    if length % _LANES or room % _LANES:
        return f"lengths must be multiples of {_LANES}, not {length} queries and {room} keys"
    if query.shape[3] % 64:
        return f"heads must be a multiple of 64 wide, not {query.shape[3]}"
    return None


def splash(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: Mask,
    scale: float | None,
    softcap: float | None,
    interpret: bool = False,
) -> jax.Array:
    """`[B, T, H, K]` and `[B, S, G, K]` twice to `[B, T, H, K]`, on TPUs; `interpret` runs the kernel anywhere."""
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels

    length, heads, width = query.shape[1:]
    room = key.shape[1]
    if mask.window:
        seen = kernels.LocalMask((length, room), (mask.window - 1, 0 if mask.causal else None), 0)
    else:
        seen = (kernels.CausalMask if mask.causal else kernels.FullMask)((length, room))
    rows, columns = _block(length), _block(room)
    sizes = kernels.BlockSizes(
        block_q=rows, block_kv=columns, block_q_dkv=rows, block_kv_dkv=columns, block_q_dq=rows, block_kv_dq=columns
    )
    kernel = kernels.make_splash_mha_single_device(
        kernels.MultiHeadMask([seen] * heads), block_sizes=sizes, attn_logits_soft_cap=softcap, interpret=interpret
    )
    # The kernel knows no scale.
    query = (query * (width**-0.5 if scale is None else scale)).astype(query.dtype)
    segments = None
    if mask.query_segments is not None:
        segments = kernels.SegmentIds(mask.query_segments, mask.key_segments)
    arrays = (x.swapaxes(1, 2) for x in (query, key, value))
    return jax.vmap(kernel)(*arrays, segments).swapaxes(1, 2).astype(value.dtype)


def _block(length: int) -> int:
    """The longest block, in whole registers, that divides a length."""
    return next(size for size in (512, 256, _LANES) if length % size == 0)
