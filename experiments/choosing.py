"""The flags of scripts that let a model write: how each token is chosen."""

from __future__ import annotations

from absl import flags

from transformer import decoding


def define_flags() -> dict[str, flags.FlagHolder]:
    """The flags that `method` reads."""
    return {
        "greedy": flags.DEFINE_boolean("greedy", False, "Always take the likeliest token."),
        "temperature": flags.DEFINE_float("temperature", 0.8, "Below 1 sharpens the choice, above 1 flattens it."),
        "top_k": flags.DEFINE_integer("top_k", None, "Choose among the k likeliest tokens."),
        "top_p": flags.DEFINE_float(
            "top_p", None, "Choose among the likeliest tokens that hold this share of probability."
        ),
        "min_p": flags.DEFINE_float(
            "min_p", None, "Choose among tokens at least this share as likely as the likeliest."
        ),
    }


def method(defined: dict[str, flags.FlagHolder]) -> decoding.Method:
    """The sampling method that the flags ask for.

    Raises:
      ValueError: if they ask for several at once, or for a temperature of what draws nothing.
    """
    value = {name: flag.value for name, flag in defined.items()}
    named = {name: value[name] for name in ("top_k", "top_p", "min_p")} | {"greedy": value["greedy"] or None}
    given = [name for name, asked in named.items() if asked is not None]
    if len(given) > 1:
        raise ValueError(f"--{' and --'.join(given)} exclude each other: give one of them")
    if given == ["greedy"] and defined["temperature"].present:
        raise ValueError("--greedy and --temperature exclude each other: give one of them")
    temperature = value["temperature"]
    match given:
        case ["greedy"]:
            return decoding.Greedy()
        case ["top_k"]:
            return decoding.TopK(value["top_k"], temperature=temperature)
        case ["top_p"]:
            return decoding.TopP(value["top_p"], temperature=temperature)
        case ["min_p"]:
            return decoding.MinP(value["min_p"], temperature=temperature)
    return decoding.Temperature(temperature)
