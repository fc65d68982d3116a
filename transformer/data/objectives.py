"""From a row of token ids to what a model is trained on. Every leading axis of a row is a batch axis."""

from __future__ import annotations

import numpy as np

Example = dict[str, np.ndarray]


def causal(row: np.ndarray, *, end: int | None = None, segments: bool = False) -> Example:
    """Predict each token from those before it: `inputs[t] = row[t]`, `targets[t] = row[t + 1]`.

    With `segments`, every `end` token starts a document, and a model given `segments` and `positions` attends within a
    document only. No weight is zero for it: the first real token of a document is predicted from that document's `end`,
    and an `end` that is a target is predicted from the document which it closes.

    Args:
      row: `[..., T + 1]` integers.
      end: the id that stands before every document; needed for `segments`.
      segments: whether to add `segments` and `positions`.

    Returns:
      `inputs`, `targets` (int32) and `weights` (float32, all ones), each `[..., T]`; when asked also
      `segments`, how many `end` tokens the row has had so far, and `positions`, the distance from the last one or from
      the start of the row (int32, `[..., T]`).

    Raises:
      ValueError: if the row has nothing to predict, or `segments` comes without `end`.
    """
    if row.ndim < 1 or row.shape[-1] < 2:
        raise ValueError(f"row has shape {row.shape}, expected [..., T + 1] with T >= 1: pass at least two tokens")
    if segments and end is None:
        raise ValueError("segments=True needs end, the id that starts a document: use a tokenizer with an end token")
    row = row.astype(np.int32)
    inputs, targets = np.ascontiguousarray(row[..., :-1]), np.ascontiguousarray(row[..., 1:])
    example = {"inputs": inputs, "targets": targets, "weights": np.ones(inputs.shape, np.float32)}
    if segments:
        starts = inputs == end
        index = np.arange(inputs.shape[-1], dtype=np.int32)
        example["segments"] = np.cumsum(starts, axis=-1, dtype=np.int32)
        example["positions"] = index - np.maximum.accumulate(np.where(starts, index, 0), axis=-1).astype(np.int32)
    return example
