import json

import pytest

from transformer import interop


def folder(path, config, generation=None):
    (path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return path


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({}, None, (None, (), ())),
        ({"eos_token_id": 2}, None, (None, (2,), ())),
        ({"eos_token_id": 2}, {"eos_token_id": [7, 9]}, (None, (7, 9), ())),
        ({"eos_token_id": 1, "decoder_start_token_id": 0}, {"eos_token_id": None}, (0, (1,), ())),
        ({"decoder_start_token_id": 3}, {"decoder_start_token_id": 5}, (5, (), ())),
        ({"bad_words_ids": [[58], [3, 4]], "suppress_tokens": []}, None, (None, (), (58,))),
        ({"bad_words_ids": [[58]]}, {"bad_words_ids": [[59]], "suppress_tokens": [1, 2]}, (None, (), (1, 2, 59))),
    ],
)
def test_ids_are_those_of_the_nearer_file(tmp_path, config, generation, expected):
    assert interop.generation(folder(tmp_path, config, generation)) == expected


@pytest.mark.parametrize("value", ["2", 1.0, True, -1, [1, None], {"id": 2}])
def test_what_is_no_id_is_refused_by_name(tmp_path, value):
    with pytest.raises(ValueError, match=r"config\.json: eos_token_id=.* must be a token id, or a list of them"):
        interop.generation(folder(tmp_path, {"eos_token_id": value}))


@pytest.mark.parametrize("content", ["[1]", "{", "[" * 100_000])
def test_a_damaged_file_is_named(tmp_path, content):
    (folder(tmp_path, {}) / "generation_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"generation_config\.json (cannot be read as JSON|holds no JSON object)"):
        interop.generation(tmp_path)
