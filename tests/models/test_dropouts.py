"""Dropouts of heads, and all rates that a model uses, are those of transformers' classes."""

import pytest
import torch
import transformers
from flax import linen as nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ftjax.build import _of_base
from ftjax.models import configure
from ftjax.models.layers import Dropout, Options
from tests.models.cases import CASES
from tests.models.other_keys import DROPOUTS, base_of, table_of
from tests.models.random_models import heads_of
from tests.models.test_parity import build

# Only what stands before a classifier; "pooler_dropout" stands before the layer before it.
OURS = ("pooler_dropout", "dropout")
# Configurations in which each key that falls back on another, or may be zero, does so.
CHANGES = ("distinct", "none", "zero")
OWN = {"classifier_dropout", "classifier_dropout_prob", "cls_dropout"}
BELOW = ("transformer.", "encoder.", "decoder.")  # where some models have the one without a head
CLASSIFIERS = {"classification", "tokens", "choice"}
# Whose classifiers call one module before and after the dense layer.
TWICE = {"roberta", "xlm-roberta", "electra", "t5", "t5-v1.1", "mt5", "bart", "mbart"}
NO_NONE = {"albert", "distilbert", "modernbert", "gpt_neo", "t5", "mt5", "bart", "mbart", "marian"}


def changed(case: str, how: str) -> dict:
    """config.json with distinct dropouts, of which heads' own are left out, or zero."""
    base = base_of(case)
    names = table_of(base["model_type"]).read & DROPOUTS.keys()
    rates = {name: DROPOUTS[name] for name in names}
    if how != "distinct":
        value = None if how == "none" else 0.0
        rates |= dict.fromkeys(names & OWN, value)
    return {**base, **rates}


def of_theirs(model: torch.nn.Module) -> tuple[list[float], set[float]]:
    """Rates of the dropouts outside the base model in order, and all rates anywhere."""
    heads, every = [], set()
    for name, module in model.named_modules():
        rates = [vars(module)[key] for key in vars(module) if "drop" in key]
        every |= {float(rate) for rate in rates if isinstance(rate, float)}
        if isinstance(module, torch.nn.Dropout):
            every.add(module.p)
            inside = name.startswith((f"{model.base_model_prefix}.", *BELOW))
            heads += [] if inside else [module.p]
    return [rate for rate in heads if rate], every - {0.0}


def of_ours(config: dict, head: str) -> tuple[list[float], set[float]]:
    """The same of ours."""
    heads, every = {}, set()

    def see(call, args, kwargs, context):
        module = context.module
        if isinstance(module, Dropout):
            every.add(module.rate)
            if len(module.path) == 1 and module.name in OURS:
                heads[module.name] = module.rate
        return call(*args, **kwargs)

    _of_base.cache_clear()
    with nn.intercept_methods(see):  # the model is traced where its parameters' shapes are found
        build(config, head)
    return [heads[name] for name in OURS if heads.get(name)], every - {0.0}


@pytest.mark.parametrize("case", CASES)
def test_heads_drop_as_theirs(case):
    for how in CHANGES:
        config = changed(case, how)
        kind = config["model_type"]
        if (how == "none" and kind in NO_NONE) or (how != "distinct" and not OWN & config.keys()):
            continue
        theirs = CONFIG_MAPPING[kind].from_dict(config)
        for head in heads_of(case) & (CLASSIFIERS if how != "distinct" else heads_of(case)):
            name = configure(config, Options()).heads[head].architecture
            with torch.device("meta"):  # without numbers
                wanted, every = of_theirs(getattr(transformers, name)(theirs))
            found, ours = of_ours(config, head)
            if head == "classification" and case in TWICE:
                wanted *= 2
            assert found == wanted, (how, head)
            if how == "distinct":
                assert ours == every, head
