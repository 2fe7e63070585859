"""Words that are not tied: their loss, what trains, and folders that contradict themselves."""

import json

import jax
import numpy as np
import optax
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from ftjax import methods, pretrained, tuned
from ftjax.build import build_tuned
from ftjax.errors import UserError
from ftjax.formats.folder import read_config
from ftjax.models import configure
from ftjax.models.layers import Options
from tests.models import random_models


def untied(case: str, head: str, method: str = "full") -> tuned.Tuned:
    config = {**random_models.config_of(case), "tie_word_embeddings": False}
    return build_tuned(config, methods.create({"name": method}), {}, {"head": head})


@pytest.mark.parametrize("case", ["bart", "gpt2"])
def test_the_loss_is_that_of_the_logits(case):
    model, batch = untied(case, random_models.natural(case)), random_models.inputs(case)
    params = random_models.parameters(model)
    targets = np.random.default_rng(1).integers(0, 64, batch["input_ids"].shape).astype(np.int32)
    weights = np.ones(targets.shape, np.float32)
    if case == "bart":
        batch = {**batch, "decoder_input_ids": random_models.inputs(case)["input_ids"]}
    given = {**batch, "targets": targets, "target_weights": weights}
    if case == "bart":  # of which the decoder reads the targets, shifted
        start = np.full((len(targets), 1), model.config.start, np.int32)
        batch["decoder_input_ids"] = np.concatenate([start, targets[:, :-1]], 1)
        given.pop("decoder_input_ids")
    found = random_models.quick(model.apply)(params, given).loss
    logits = random_models.quick(model.apply)(params, batch)
    wanted = optax.softmax_cross_entropy_with_integer_labels(logits, targets).sum()
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_the_head_trains_with_the_model_and_words_may_be_adapted_alone():
    model = untied("bert", "masked_lm")
    assert model.partition.is_trainable("mlm/kernel")
    params = random_models.parameters(model)
    merged = model.merged({**params, "embeddings/word/embedding": params["mlm/kernel"].T})
    assert "mlm/kernel" in merged


@pytest.mark.parametrize("case", ["gemma", "distilbert"])
def test_a_head_that_is_said_to_be_tied_and_differs_is_refused(case, one_device, tmp_path):
    name = "AutoModelForCausalLM" if case == "gemma" else "AutoModelForMaskedLM"
    config = transformers.AutoConfig.for_model(**random_models.config_of(case))
    getattr(transformers, name).from_config(config).save_pretrained(tmp_path)
    head, file = random_models.natural(case), tmp_path / "model.safetensors"
    model = build_tuned(read_config(tmp_path), methods.create({"name": "full"}), {}, {"head": head})
    tensors = load_file(file)
    table = next(tensor for path, tensor in tensors.items() if path.endswith(WORDS[case]))
    copy = model.config.heads[head].vocabulary + ".weight"
    save_file({**tensors, copy: table.copy()}, file)
    pretrained.load(tmp_path, model, one_device, jax.random.key(0))  # a copy, as older folders have
    save_file({**tensors, copy: table + 1}, file)
    with pytest.raises(UserError, match=f"{copy}.*tied.*differ.*tie_word_embeddings"):
        pretrained.load(tmp_path, model, one_device, jax.random.key(0))


def test_a_bias_that_is_said_to_be_tied_and_differs_is_refused(one_device, tmp_path):
    """transformers would add the one beside the table."""
    config = transformers.AutoConfig.for_model(**random_models.config_of("bert"))
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    model = build_tuned(
        read_config(tmp_path), methods.create({"name": "full"}), {}, {"head": "masked_lm"}
    )
    file, bias = tmp_path / "model.safetensors", "cls.predictions.bias"
    tensors = load_file(file)
    for moved in (0, 1):
        copy = {"cls.predictions.decoder.bias": tensors[bias] + np.float32(moved)}
        save_file({**tensors, **copy}, file)
        if not moved:
            pretrained.load(tmp_path, model, one_device, jax.random.key(0))
            continue
        with pytest.raises(UserError, match="predictions.decoder.bias' is tied .*remove one"):
            pretrained.load(tmp_path, model, one_device, jax.random.key(0))


@pytest.mark.parametrize("case", ["t5-v1.1", "mt5", "gpt2"])
def test_an_absent_table_of_untied_words_is_said_with_what_reads_it(case, one_device, tmp_path):
    """transformers reads T5's words off the other table, without the scale of tied ones."""
    config, head = (
        {**random_models.config_of(case), "tie_word_embeddings": False},
        random_models.natural(case),
    )
    config.pop("scale_decoder_outputs", None)
    name = configure(config, Options()).heads[head].architecture
    theirs = getattr(transformers, name)(transformers.AutoConfig.for_model(**config)).eval()
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({k: x for k, x in load_file(file).items() if k != "lm_head.weight"}, file)
    (tmp_path / "config.json").write_text(json.dumps(config))

    def load(new_head=False):
        full = methods.create({"name": "full"})
        model = build_tuned(read_config(tmp_path), full, {}, {"head": head})
        key = jax.random.key(0)
        return model, *pretrained.load(tmp_path, model, one_device, key, new_head=new_head)

    with pytest.raises(UserError, match="no 'lm_head.weight': set .*tie_word_embeddings\": true"):
        load()
    assert load(new_head=True)[2] == ["lm_head/kernel"]
    if case == "gpt2":
        return
    config |= {"tie_word_embeddings": True, "scale_decoder_outputs": False}  # as the message says
    config = config if case != "mt5" else {k: x for k, x in config.items() if "scale" not in k}
    again = type(theirs).from_pretrained(tmp_path).eval()
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, params, absent = load()
    ids = np.arange(4, 12).reshape(2, 4)
    with torch.no_grad():
        wanted = again(input_ids=torch.tensor(ids), decoder_input_ids=torch.tensor(ids)).logits
    found = random_models.quick(model.apply)(params, {"input_ids": ids, "decoder_input_ids": ids})
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5 * np.abs(wanted.numpy()).max())
    assert not absent


WORDS = {"gemma": "embed_tokens.weight", "distilbert": "word_embeddings.weight"}


def test_a_model_that_sees_both_sides_does_not_generate():
    config = {**random_models.config_of("gemma3"), "use_bidirectional_attention": True}
    model = build_tuned(config, methods.create({"name": "full"}), {}, {"head": "causal_lm"})
    with pytest.raises(UserError, match="both sides"):
        model.apply_cached(random_models.parameters(model), None, random_models.inputs("gemma3"))


@pytest.mark.parametrize("window", [0, 1, 7])
def test_a_window_of_both_sides_is_of_one_token_at_least(window):
    """As transformers saves it: of nothing besides the token itself it is 0."""
    config = {**random_models.config_of("gemma3"), "use_bidirectional_attention": True}
    config["sliding_window"] = window
    wanted = transformers.Gemma3TextConfig(**config).sliding_window
    assert wanted in configure(config, Options()).windows
