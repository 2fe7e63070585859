"""ALBERT (Lan et al. 2020): BERT whose layers share their parameters, with small embeddings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax

from ftjax.models import bert, encoder
from ftjax.models.config import inside
from ftjax.models.config_keys import keys
from ftjax.models.encoder import DEFAULT_TARGETS, Embeddings, Inputs, Layer, checked, fields_in
from ftjax.models.heads import Head, untied, with_dropouts
from ftjax.models.layers import Options
from ftjax.models.masks import View
from ftjax.models.pooling import at_starts
from ftjax.models.stack import POLICIES

__all__ = ["DEFAULT_TARGETS", "Model"]

Array = jax.Array
MODEL = "AlbertModel"
HF_PREFIX = "albert"
WORDS = "predictions.decoder"
MLM = {
    "mlm/dense": "predictions.dense",
    "mlm/norm": "predictions.LayerNorm",
    "mlm": "predictions",
}
POOLED = {"classifier": "classifier"}
HEADS = {
    "classification": Head("AlbertForSequenceClassification", POOLED, activation="tanh"),
    "choice": Head("AlbertForMultipleChoice", POOLED, activation="tanh"),
    "tokens": Head("AlbertForTokenClassification", {"classifier": "classifier"}),
    "span": Head("AlbertForQuestionAnswering", {"classifier": "qa_outputs"}),
    "masked_lm": Head("AlbertForMaskedLM", MLM, vocabulary=WORDS),
    "pretraining": Head(
        "AlbertForPreTraining",
        {**MLM, "next_sentence": "sop_classifier.classifier"},
        activation="tanh",
        vocabulary=WORDS,
    ),
}
LAYER = {
    "attention/query": "attention.query",
    "attention/key": "attention.key",
    "attention/value": "attention.value",
    "attention/output": "attention.dense",
    "attention_norm": "attention.LayerNorm",
    "ffn/up": "ffn",
    "ffn/down": "ffn_output",
    "ffn_norm": "full_layer_layer_norm",
}
MODULES = {
    **bert.EMBEDDINGS,
    "embeddings/project": "encoder.embedding_hidden_mapping_in",
    **inside("encoder/group_{}/inner_{}", "encoder.albert_layer_groups.{}.albert_layers.{}", LAYER),
    "pooler": "pooler",
}
DEFAULTS = {
    "vocab_size": 30000,
    "embedding_size": 128,
    "hidden_size": 4096,
    "num_attention_heads": 64,
    "intermediate_size": 16384,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
KEYS = {
    "albert": keys(
        f"{bert.READ} embedding_size classifier_dropout_prob num_hidden_groups inner_group_num",
        **bert.FIXED,
    )
}


@dataclass(frozen=True, kw_only=True)
class Config(encoder.Config):
    """ALBERT's: layers in `num_hidden_groups` groups of `inner_group_num`, each group repeated."""

    num_hidden_groups: int = 1
    inner_group_num: int = 1

    @property
    def depths(self) -> dict[str, tuple[int, ...]]:
        return {"encoder": (self.num_hidden_groups, self.inner_group_num)}


def from_hf(hf: Mapping[str, Any], options: Options) -> Config:
    """Reads config.json's mapping.

    Raises:
        UserError: an option that is not implemented.
    """
    hf = {**DEFAULTS, **hf}
    rate, tied = hf.get("classifier_dropout_prob", 0.1), hf.get("tie_word_embeddings", True)
    rate = hf["hidden_dropout_prob"] if rate is None else rate
    rates = dict.fromkeys(("classification", "choice", "tokens", "pretraining"), rate)
    heads = with_dropouts(HEADS, rates)
    config = Config(
        **fields_in(hf, Config),
        project_embeddings=True,
        tied=tied,
        heads=heads if tied else untied(heads, "mlm"),
        modules=MODULES,
        options=options,
    )
    return checked(config, "albert")


class Group(nn.Module):
    """One pass through a group's layers."""

    config: Config

    @nn.compact
    def __call__(self, x: Array, view: View, starts: Array | None) -> Array:
        c, layer_class = self.config, Layer
        if c.options.remat != "none":
            scanned = max(c.options.segments) > 1
            layer_class = nn.remat(Layer, policy=POLICIES[c.options.remat], prevent_cse=not scanned)
        for i in range(c.inner_group_num):
            x = layer_class(c, name=f"inner_{i}")(x, view, starts)
        return x


class Repeated(nn.Module):
    """Each group of layers, as often as its share of the depth.

    Passes share their parameters, so that segments matter to nothing but compile time: where one
    is longer than a layer, each group's passes are scanned.
    """

    config: Config

    @nn.compact
    def __call__(self, x: Array, view: View, starts: Array | None) -> Array:
        c = self.config
        depth, scanned = c.num_hidden_layers, max(c.options.segments) > 1
        numbers = [i * c.num_hidden_groups // depth for i in range(depth)]
        for number in range(c.num_hidden_groups):
            group, passes = Group(c, name=f"group_{number}"), numbers.count(number)
            if not scanned:
                for _ in range(passes):
                    x = group(x, view, starts)
                continue
            repeat = nn.scan(
                lambda group, x, *shared: (group(x, *shared), None),
                variable_broadcast="params",
                split_rngs={"params": False, "dropout": True},
                in_axes=nn.broadcast,
                length=passes,
            )
            x, _ = repeat(group, x, view, starts)
        return x


class Model(encoder.Model):
    """The encoder with shared layers under a head; see `ftjax.models.encoder.Model`."""

    config: Config

    def encode(self, inputs: Inputs, starts_only: bool) -> tuple[Array, Array]:
        c = self.config
        x, table = Embeddings(c, name="embeddings")(inputs)
        x = Repeated(c, name="encoder")(x, inputs.view, inputs.starts)
        return at_starts(x, inputs.starts) if starts_only else x, table
