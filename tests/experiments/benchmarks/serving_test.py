"""That a draft is nearly always right, and that nothing is counted that was not written."""

import sys
import warnings

import pytest

from experiments.benchmarks import serving

MODEL = {"tiny": True, "precision": "float32", "device": "cpu"}


def test_our_draft_is_right():
    assert serving.our_draft(tokens=12, proposals=4, **MODEL)()["accepted"] == 1
    assert serving.our_draft(tokens=12, proposals=0, **MODEL)() is None


@pytest.mark.filterwarnings("ignore")
def test_the_peers_draft_is_right():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("transformers", reason="the extra `oracle` is not installed")
        pytest.importorskip("torch", reason="the extra `oracle` is not installed")
        assert serving.hugging_face_draft(tokens=12, proposals=4, **MODEL)()["accepted"] == 1
        assert serving.hugging_face_draft(tokens=12, proposals=0, **MODEL)() == {}


def test_tokens_that_were_not_written_are_no_result(monkeypatch):
    program = serving.our_service(count=3, most=4, slots=2, prompt=4, **MODEL)
    program()
    module = sys.modules["transformer.decoding.serve"]
    whole = module.serve
    monkeypatch.setattr(module, "serve", lambda *args, **options: list(whole(*args, **options))[1:])
    with pytest.raises(RuntimeError, match=r"\d tokens came back of \d"):
        serving.our_service(count=3, most=4, slots=2, prompt=4, **MODEL)()
