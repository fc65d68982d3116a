"""Prepared TensorFlow Datasets: opened from their files, never downloaded, and read without TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder


def open_dataset(name: str, folder: str | None, *, where: str, shelf: str) -> DatasetBuilder:
    """A dataset that lies prepared on this machine.

    Args:
      name: "NAME[/CONFIG][:VERSION]".
      folder: where datasets are prepared; None: the library's own default.
      where: the setting that names the dataset, for messages.
      shelf: the part of the library, "text" or "translate", that most likely holds the code to prepare the dataset: the
        library finds some datasets only once their part is imported.

    Raises:
      ValueError: if it is not prepared, or stored in a format that needs TensorFlow; either says how to prepare it.
    """
    import tensorflow_datasets as tfds  # slow to import, and wanted by this source alone

    place = "" if folder is None else f", data_dir={folder!r}"
    imports = f"import tensorflow_datasets as tfds, tensorflow_datasets.{shelf}"
    builder = f"tfds.builder({name!r}{place}, file_format='array_record')"
    prepare = f'python -c "{imports}; {builder}.download_and_prepare()"'
    try:
        # From files only: a builder made from code would be one call away from the network.
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=folder)
    except (tfds.core.DatasetNotFoundError, ValueError, OSError):
        raise ValueError(f"{where} is not prepared on this machine, and nothing is downloaded: run {prepare}") from None
    file_format = builder.info.file_format
    if file_format is None or file_format.value != "array_record":
        raise ValueError(f"{where} is stored as {file_format and file_format.value}, not array_record: run {prepare}")
    return builder


def check_feature(builder: DatasetBuilder, feature: str, *, where: str, setting: str) -> None:
    """Raises ValueError unless the rows of a dataset have a feature, which `setting` asks for."""
    if feature not in builder.info.features:
        names = ", ".join(sorted(builder.info.features))
        raise ValueError(f"{where} has no {setting}={feature!r}: choose one of {names}")


def rows(builder: DatasetBuilder, split: str, *, where: str, setting: str) -> Sequence[dict[str, Any]]:
    """The rows of a split, which `setting` asks for.

    Raises:
      ValueError: if there is no such split.
    """
    try:
        return builder.as_data_source(split=split)
    except (ValueError, KeyError, AssertionError):
        names = ", ".join(sorted(builder.info.splits))
        raise ValueError(f"{where} has no {setting}={split!r}: choose among {names}") from None


def text(value: object, *, where: str, setting: str) -> str:
    """The text that a row holds in the feature that `setting` chose.

    Raises:
      ValueError: if it is no text, or not UTF-8.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        raise ValueError(f"{where} holds {type(value).__name__}, not text: choose another {setting}")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 (byte {error.start}): clean it when preparing the dataset") from None
