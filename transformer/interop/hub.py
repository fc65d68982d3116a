"""A folder on this machine, or a model on the Hugging Face hub."""

from __future__ import annotations

import errno
import os
import pathlib
import re

from transformer.interop.files import CONFIG

NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
FILES = {  # which of a model's files are fetched
    "allow_patterns": ["*.json", "*.safetensors", "*.txt", "*.model", "*.spm"],
    "ignore_patterns": ["consolidated*", "original/*", "onnx/*", "openvino/*", "coreml/*"],  # the same in other forms
}
SECONDS = 5.0  # before a network that does not answer counts as none


def resolve(folder: str | os.PathLike[str]) -> pathlib.Path:
    """The folder itself, or, for the name of a model on the hub, the folder that it was fetched to.

    Raises:
      FileNotFoundError: if there is neither, or the extra is missing that fetching needs.
      ValueError: if the folder holds no `config.json`.
    """
    path = pathlib.Path(folder)
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise ValueError(f"folder={str(path)!r} holds no {CONFIG}: name a folder of a pretrained model")
        return path
    if path.exists():
        raise ValueError(f"folder={str(path)!r} is a file: name the folder that holds {CONFIG}")
    name = str(folder)
    if not NAME.fullmatch(name) or name.startswith("."):
        raise FileNotFoundError(f"folder={name!r} does not exist, and is no name of a model on the hub (owner/name)")
    fetched = pathlib.Path(_fetched(name))
    if not (fetched / CONFIG).is_file():
        raise ValueError(
            f"folder={name!r} holds no {CONFIG} on the Hugging Face hub, or {fetched} is not whole: remove it"
        )
    return fetched


def _fetched(name: str) -> str:
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise FileNotFoundError(
            f"folder={name!r} does not exist; to fetch a model of that name from the Hugging Face hub, install the "
            "extra: pip install 'transformer-research[hub]'"
        ) from None
    try:
        # Asked first and once, as fetching would try a network that is not there again and again.
        huggingface_hub.HfApi().model_info(name, timeout=SECONDS)
        return huggingface_hub.snapshot_download(name, **FILES)
    except errors.GatedRepoError:
        raise ValueError(f"folder={name!r}: accept its licence on the Hugging Face hub and log in there") from None
    except Exception as error:  # the library raises what its HTTP client raises
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS):
            raise  # of this machine
        reason = type(error).__name__
    try:
        return huggingface_hub.snapshot_download(name, **FILES, local_files_only=True)
    except Exception:
        raise FileNotFoundError(
            f"folder={name!r} does not exist here, and the Hugging Face hub did not give a model of that name "
            f"({reason}): check the name and the network, or name a folder"
        ) from None
