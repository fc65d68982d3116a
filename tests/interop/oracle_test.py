"""Every family against the publisher's library, on small random models: states, patterns, logits, greedy tokens, files.

Needs the extra `oracle`; the rest of the suite does without. `golden_test.py` repeats a digest of these comparisons
where the extra is missing. To write its numbers anew:

    GOLDEN=write python -m pytest -q tests/interop/oracle_test.py
"""

from __future__ import annotations

import copy
import json
import os
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="the extra `oracle` is not installed")
    transformers = pytest.importorskip("transformers", reason="the extra `oracle` is not installed")

from tests.interop import cases, digests
from tests.interop.cases import CASES
from transformer import interop
from transformer.interop.families import FAMILIES

TOLERANCE = 2e-5  # of the largest magnitude: float32 on both sides, with sums in another order
LENGTH = 64

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # theirs
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """`reference(name)`: their model of a case, and the folder that it saved."""
    made = {}

    def make(name):
        if name not in made:
            case, folder = CASES[name], tmp_path_factory.mktemp(name)
            (folder / "config.json").write_text(json.dumps({"model_type": case.family, **case.fields}))
            config = transformers.AutoConfig.from_pretrained(folder)
            config._attn_implementation = "eager"  # the others form no patterns
            torch.manual_seed(0)
            model = getattr(transformers, case.architecture)(config).eval()
            set_weights(case, model)
            model.save_pretrained(folder, save_original_format=True)
            made[name] = (model, folder)
        return made[name]

    return make


def set_weights(case, model) -> None:
    """Give a model of theirs the weights of a case; what is tied has those of its first name."""
    # A new T5 of theirs is tied whatever its config says; the published ones of version 1.1 are not.
    if case.family == "t5" and not case.fields.get("tie_word_embeddings", True):
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    done = set()
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.dtype == torch.float32 and "embed_positions" not in key and tensor.data_ptr() not in done:
                name, shape = digests.canonical(case, key), tuple(tensor.shape)
                fused = case.family == "mixtral" and ".mlp." in key
                tensor.copy_(torch.from_numpy((mixture if fused else cases.weight)(name, shape)))
                done.add(tensor.data_ptr())


def mixture(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Their model holds all experts of a layer as one tensor, gates above the rest; their files hold each by itself."""
    layer, _, kind = name.partition(".mlp.")
    if kind == "gate.weight":
        return cases.weight(f"{layer}.block_sparse_moe.gate.weight", shape)
    parts, rows = (("w1", "w3"), shape[1] // 2) if "gate_up" in kind else (("w2",), shape[1])
    one = f"{layer}.block_sparse_moe.experts.{{}}.{{}}.weight"
    made = [[cases.weight(one.format(expert, part), (rows, shape[2])) for part in parts] for expert in range(shape[0])]
    return np.stack([np.concatenate(of_expert) for of_expert in made])


@pytest.fixture(scope="module")
def loaded(reference):
    made = {}

    def make(name):
        if name not in made:
            made[name] = interop.load(reference(name)[1])[:2]
        return made[name]

    return make


def theirs(case, model) -> digests.Seen:
    """What their library computes from the inputs of a case."""
    given = cases.inputs(case)
    arguments = {"output_hidden_states": True, "output_attentions": True}
    ids, mask = torch.from_numpy(given["tokens"]).long(), torch.from_numpy(given["mask"]).long()
    with torch.no_grad():
        if case.sequence_to_sequence:
            target = torch.from_numpy(cases.target()).long()
            out = model(input_ids=ids, attention_mask=mask, decoder_input_ids=target, **arguments)
            states = {"encoder": out.encoder_hidden_states, "decoder": out.decoder_hidden_states}
            patterns = {"encoder/{}/pattern": out.encoder_attentions, "decoder/{}/pattern": out.decoder_attentions}
            patterns["decoder/{}/cross/pattern"] = out.cross_attentions
        else:
            if case.family != "roberta":  # which counts positions itself
                arguments["position_ids"] = torch.from_numpy(given["positions"]).long()
            out = model(input_ids=ids, attention_mask=mask, **arguments)
            role = "encoder" if case.encodes else "decoder"
            states, patterns = {role: out.hidden_states}, {role + "/{}/pattern": out.attentions}
    sites = {}
    for role, arrays in states.items():
        names = [*(f"{role}/{layer}/residual_pre" for layer in range(len(arrays) - 1)), f"{role}/final_norm"]
        sites |= dict(zip(names, arrays, strict=True))
    for name, arrays in patterns.items():
        sites |= {name.format(layer): array for layer, array in enumerate(arrays)}
    logits = getattr(out, "prediction_logits", None) if "prediction_logits" in out else getattr(out, "logits", None)
    pooled = getattr(out, "pooler_output", None)
    if pooled is None and case.architecture == "BertForPreTraining":
        pooled = model.bert.pooler(out.hidden_states[-1])
    sites |= {name: array for name, array in (("logits", logits), ("pooled", pooled)) if array is not None}
    return {name: array.detach().numpy() for name, array in sites.items()}


def greedy(case, model) -> np.ndarray:
    """Their greedy continuation of each row by itself."""
    model = copy.deepcopy(model)  # dynamic rotary frequencies remember the longest sequence that they have met
    config = model.generation_config
    config.eos_token_id = config.forced_eos_token_id = None
    decoder_layers = case.fields.get("num_decoder_layers", 0)
    cached = decoder_layers <= case.fields.get("num_layers", decoder_layers)  # theirs has room for the encoder's depth
    rows = []
    for row in digests.prompts(case):
        ids = torch.tensor([row])
        with torch.no_grad():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=LENGTH, do_sample=False, use_cache=cached
            )
        rows.append(out[0, -LENGTH:].numpy())
    return np.stack(rows)


@pytest.mark.parametrize("name", CASES)
def test_every_state_pattern_and_logit_is_theirs(name, reference, loaded):
    case, (model, params) = CASES[name], loaded(name)
    expected = theirs(case, reference(name)[0])
    digests.compare(case, digests.ours(case, model, params), expected, TOLERANCE)
    if os.environ.get("GOLDEN") == "write":
        digests.record(name, seen=digests.digest(case, expected))
    elif (golden := digests.golden(name)) is not None:
        digests.close(digests.digest(case, expected), golden["seen"])  # the numbers on file are still theirs


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.encodes])
def test_greedy_decoding_with_a_cache_gives_their_tokens(name, reference, loaded):
    case, (model, params) = CASES[name], loaded(name)
    expected = greedy(case, reference(name)[0])
    np.testing.assert_array_equal(digests.continuation(case, model, params, LENGTH), expected)
    if os.environ.get("GOLDEN") == "write":
        digests.record(name, greedy=expected[:, : digests.LENGTH].tolist())
    elif (golden := digests.golden(name)) is not None:
        assert expected[:, : digests.LENGTH].tolist() == golden["greedy"]


@pytest.mark.parametrize("name", CASES)
def test_a_saved_folder_opens_with_their_library_and_computes_the_same(name, reference, loaded, tmp_path):
    case, (model, params) = CASES[name], loaded(name)
    ids = types.SimpleNamespace(pad=case.fields.get("pad_token_id"), save=lambda folder: None)
    assert interop.save(tmp_path / "saved", model, params, ids, family=case.family) == case.family
    architecture = json.loads((tmp_path / "saved/config.json").read_text())["architectures"][0]
    opened, report = getattr(transformers, architecture).from_pretrained(
        tmp_path / "saved", attn_implementation="eager", output_loading_info=True
    )
    unmade = [key for key in report["missing_keys"] if not key.startswith(("cls.seq_relationship", "pooler."))]
    assert not unmade
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    one, other = theirs(case, reference(name)[0]), theirs(case._replace(architecture=architecture), opened.eval())
    digests.compare(case, one, other, TOLERANCE)  # PyTorch's sums depend on where arrays lie in memory
    assert ("logits" in other) == (case.architecture not in ("BertModel", "RobertaModel"))


@pytest.mark.parametrize("name", CASES)
def test_load_save_load_changes_no_bit(name, loaded, tmp_path):
    model, params = loaded(name)
    interop.save(tmp_path / "saved", model, params, family=CASES[name].family)
    again, params_again, _ = interop.load(tmp_path / "saved")
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, params, params_again)


def test_the_publishers_class_is_told_from_the_config_alone(loaded, tmp_path):
    model, params = loaded("llama")
    interop.save(tmp_path / "saved", model, params)
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    ids = np.arange(8)[None]
    logits = opened(torch.from_numpy(ids)).logits.detach().numpy()
    np.testing.assert_allclose(model.apply({"params": params}, jnp.asarray(ids)), logits, atol=1e-4)


def test_the_inventory_of_unlike_configurations():
    counts = {}
    for case in CASES.values():
        counts[case.family] = counts.get(case.family, 0) + 1
    assert set(counts) == set(FAMILIES)
    assert min(counts.values()) >= 3
