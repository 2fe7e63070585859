"""ModernBERT (Warner et al. 2024): pre-norm, rotary, gated, most layers of local attention."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.errors import UserError
from ftjax.models import decoder, encoder, rotary
from ftjax.models.config import QKV, fused, inside
from ftjax.models.config_keys import keys
from ftjax.models.decoder import DEFAULT_TARGETS, Attention, checked
from ftjax.models.feed_forward import FeedForward
from ftjax.models.heads import Head, with_dropouts
from ftjax.models.language_head import read_off
from ftjax.models.layers import (
    ACTIVATIONS,
    Bias,
    Dense,
    Dropout,
    Embedding,
    LayerNorm,
    Options,
)
from ftjax.models.masks import near_views, pick, view_of
from ftjax.models.pooling import at_starts, mean_pool
from ftjax.models.stack import Stack

__all__ = ["DEFAULT_TARGETS", "Model"]

Array = jax.Array
MODEL = "ModernBertModel"
HF_PREFIX = "model"
TRANSFORM = {"transform/dense": "head.dense", "transform/norm": "head.norm"}
CLASSIFIER = {**TRANSFORM, "classifier": "classifier"}
HEADS = {
    "classification": Head("ModernBertForSequenceClassification", CLASSIFIER),
    "choice": Head("ModernBertForMultipleChoice", CLASSIFIER),
    "tokens": Head("ModernBertForTokenClassification", CLASSIFIER),
    "span": Head("ModernBertForQuestionAnswering", CLASSIFIER),
    "masked_lm": Head(
        "ModernBertForMaskedLM", {**TRANSFORM, "logits": "decoder"}, vocabulary="decoder"
    ),
}
KEYS = {
    "modernbert": keys(
        "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size "
        "max_position_embeddings hidden_activation norm_eps norm_bias attention_bias mlp_bias "
        "classifier_bias decoder_bias classifier_activation classifier_pooling "
        "classifier_dropout embedding_dropout attention_dropout mlp_dropout layer_types "
        "global_attn_every_n_layers local_attention rope_parameters rope_scaling global_rope_theta "
        "local_rope_theta initializer_range initializer_cutoff_factor head_dim "
        "tie_word_embeddings",
        inert="deterministic_flash_attn sparse_prediction sparse_pred_ignore_index",
        is_encoder_decoder=(False,),
    )
}
LAYER = {
    "attention_norm": "attn_norm",
    **fused("attn.Wqkv", dict.fromkeys(QKV, "hidden_size")),
    "attention/output": "attn.Wo",
    "ffn_norm": "mlp_norm",
    **fused("mlp.Wi", dict.fromkeys(("ffn/gate", "ffn/up"), "intermediate_size")),
    "ffn/down": "mlp.Wo",
}
MODULES = {
    "embeddings/word": "embeddings.tok_embeddings",
    "embeddings/norm": "embeddings.norm",
    **inside("encoder/layer_{}", "layers.{}", LAYER),
    "final_norm": "final_norm",
}
KINDS = {"full_attention": ("global", 160_000.0), "sliding_attention": ("local", 10_000.0)}


@dataclass(frozen=True, kw_only=True)
class Config(decoder.Config):
    """ModernBERT's; `windows` are how far a token sees to either side.

    Attributes:
        biases: also "norm", "transform" (of the heads) and "logits".
        classifier_pooling: the published classifier's, "cls" or "mean".
        classifier_activation: of the heads' transform.
        classifier_range: standard deviation of the classifier's initial kernel.
    """

    classifier_pooling: str = "cls"
    classifier_activation: str = "gelu"
    classifier_range: float = 0.02

    def normalize(self, name: str) -> nn.Module:
        return LayerNorm(self.norm_eps, "norm" in self.biases, name=name)


def from_hf(hf: Mapping[str, Any], options: Options) -> Config:
    """Reads config.json's mapping.

    Raises:
        UserError: an option that is not implemented.
    """
    hf = {"max_position_embeddings": 8192, **hf}
    size, heads = hf.get("hidden_size", 768), hf.get("num_attention_heads", 12)
    layers, period = hf.get("num_hidden_layers", 22), hf.get("global_attn_every_n_layers", 3)
    if size % heads:
        raise UserError("modernbert: num_attention_heads does not divide hidden_size")
    if hf.get("head_dim") not in (None, size // heads):
        raise UserError(f"modernbert: head_dim={hf['head_dim']} other than hidden_size / heads")
    rate = hf.get("classifier_dropout") or 0.0
    rates = dict.fromkeys(("classification", "choice", "tokens", "span"), rate)
    activation, pooling = hf.get("classifier_activation", "gelu"), hf.get("classifier_pooling")
    if activation not in ACTIVATIONS:
        raise UserError(f"modernbert: classifier_activation={activation!r} is not implemented")
    if pooling not in (None, "cls", "mean"):
        raise UserError(f"modernbert: classifier_pooling={pooling!r} is not implemented")
    names = list(KINDS)
    types = hf.get("layer_types") or [names[i % period > 0] for i in range(layers)]
    unknown = [name for name in types if name not in names]
    if unknown:
        raise UserError(f"modernbert: layer_types {unknown[0]!r} is not implemented")
    spread = _truncated(hf.get("initializer_cutoff_factor", 2.0) or 3.0)
    stddev = spread * hf.get("initializer_range", 0.02)
    return checked(
        Config(
            vocab_size=hf.get("vocab_size", 50368),
            hidden_size=size,
            intermediate_size=hf.get("intermediate_size", 1152),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=size // heads,
            max_position_embeddings=hf["max_position_embeddings"],
            hidden_act=hf.get("hidden_activation", "gelu"),
            norm_eps=hf.get("norm_eps", 1e-5),
            biases=_biases(hf),
            windows=(None, hf.get("local_attention", 128) // 2),
            rotaries=_rotaries(hf, size // heads),
            kinds=tuple(names.index(name) for name in types),
            embedding_dropout=hf.get("embedding_dropout", 0.0),
            attention_dropout=hf.get("attention_dropout", 0.0),
            dropout=hf.get("attention_dropout", 0.0),
            activation_dropout=hf.get("mlp_dropout", 0.0),
            classifier_pooling=pooling or "cls",
            classifier_activation=activation,
            initializer_range=stddev,
            residual_range=stddev / (2 * layers) ** 0.5,
            classifier_range=spread / size**0.5,
            tied=hf.get("tie_word_embeddings", True),
            heads=with_dropouts(HEADS, rates),
            modules=MODULES,
            options=options,
        ),
        "modernbert",
    )


def _biases(hf: Mapping[str, Any]) -> tuple[str, ...]:
    """Which modules have biases, as `Config` calls them."""
    biased = {
        "norm": hf.get("norm_bias", False),
        "qkv": hf.get("attention_bias", False),
        "output": hf.get("attention_bias", False),
        "ffn": hf.get("mlp_bias", False),
        "transform": hf.get("classifier_bias", False),
        "logits": hf.get("decoder_bias", True),
    }
    return tuple(name for name, has in biased.items() if has)


def _rotaries(hf: Mapping[str, Any], size: int) -> tuple[Any, ...]:
    """The rotary positions of each of `KINDS`, of heads of a size."""
    return tuple(
        rotary.of_kind(
            hf,
            name,
            size,
            "modernbert",
            hf.get(f"{scope}_rope_theta", theta),
            hf.get("rope_scaling"),
        )
        for name, (scope, theta) in KINDS.items()
    )


def _truncated(cut: float) -> float:
    """Standard deviation of a standard normal distribution cut off at ±cut."""
    density = math.exp(-(cut**2) / 2) / math.sqrt(2 * math.pi)
    return math.sqrt(1 - 2 * cut * density / math.erf(cut / math.sqrt(2)))


class Embeddings(nn.Module):
    """LN(word), with dropout."""

    config: Config

    @nn.compact
    def __call__(self, input_ids: Array) -> tuple[Array, Array]:
        """Embedded tokens (batch, length, features), and the table of words."""
        c = self.config
        word = Embedding(c.vocab_size, c.hidden_size, stddev=c.initializer_range, name="word")
        x = c.normalize("norm")(word(input_ids).astype(c.options.dtype))
        return Dropout(c.embedding_dropout, name="dropout")(x), word.embedding


class Layer(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)).

    Attributes:
        first: of the stack; it reads embeddings, which are normalized already.
    """

    config: Config
    first: bool = False

    @nn.compact
    def __call__(self, x: Array, kind: Any, views: Any, rotaries: Any) -> Array:
        """See `ftjax.models.decoder.Layer`."""
        c = self.config
        x = nn.with_logical_constraint(x, ("batch", "length", "hidden"))
        y = x if self.first else c.normalize("attention_norm")(x)
        x = x + Attention(c, name="attention")(y, view_of(views, kind), pick(rotaries, kind))
        ffn = FeedForward(c, c.intermediate_size, inner="dropout", outer=False, name="ffn")
        return x + ffn(c.normalize("ffn_norm")(x))


class Transform(nn.Module):
    """norm(act(dense(x))), float32, that every head begins with."""

    config: Config

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, bias = self.config, "transform" in self.config.biases
        dense = Dense(x.shape[-1], ("embed", None), bias, stddev=c.residual_range, name="dense")
        return c.normalize("norm")(ACTIVATIONS[c.classifier_activation](dense(x)))


class Model(encoder.Model):
    """ModernBERT under a head; see `ftjax.models.encoder.Model`."""

    config: Config

    def encode(self, inputs: encoder.Inputs, starts_only: bool) -> tuple[Array, Array]:
        c = self.config
        x, table = Embeddings(c, name="embeddings")(inputs.input_ids)
        length = x.shape[1]
        positions = jnp.arange(length)[None] if inputs.position_ids is None else inputs.position_ids
        views = near_views(inputs.view, length, c.windows)
        first, *rest = c.options.segments  # the first layer is not like the others: never scanned
        stack = Stack(
            lambda cls, name, last: cls(c, name == "layer_0", name=name),
            Layer,
            (1, *(length for length in (first - 1, *rest) if length)),
            c.options.remat,
            c.kinds,
            name="encoder",
        )
        x = stack(x, views, tuple(rotary.table(positions) for rotary in c.rotaries))
        return c.normalize("final_norm")(x), table

    def pool(self, x: Array, inputs: encoder.Inputs) -> Array:
        pooling = self.pooling
        if pooling == "cls" and self.head != "embedding":
            pooling = self.config.classifier_pooling  # the published classifier's
        if pooling == "mean":
            return mean_pool(x, inputs.attention_mask, inputs.segment_ids, inputs.starts)
        return at_starts(x, inputs.starts)

    def classify(self, x: Array, labels: int) -> Array:
        if self.pooling == "cls":
            x = Transform(self.config, name="transform")(x)
        return self.score(x, labels)

    def each_token(
        self, x: Array, table: Array, starts: Array | None, at_positions: Array | None = None
    ) -> Array:
        x = at_starts(x, at_positions) if at_positions is not None else x
        x = Transform(self.config, name="transform")(x)
        if self.head != "masked_lm":
            return self.score(x, 2 if self.head == "span" else self.labels)
        c, biased = self.config, "logits" in self.config.biases
        if not c.tied:
            dense = partial(Dense, stddev=c.residual_range, name="logits")
            return dense(len(table), ("embed", "vocab"), biased)(x)
        logits = read_off(x, table)
        if biased:
            logits = logits + Bias(table.shape[:1], ("vocab",), name="logits")()
        return logits

    def score(self, x: Array, labels: int) -> Array:
        """Logits (..., labels) of what the transform, if any, gave."""
        c = self.config
        x = Dropout(c.heads[self.head].dropout, name="dropout")(x)
        return Dense(labels, ("embed", None), stddev=c.classifier_range, name="classifier")(x)
