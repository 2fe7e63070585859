"""BART (Lewis et al. 2020), mBART (Liu et al. 2020) and Marian (Junczys-Dowmunt et al. 2018)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ftjax.errors import UserError
from ftjax.formats.hf import Part
from ftjax.models.cache import Cache, View, prompt_view, token_view
from ftjax.models.decoder import last_tokens
from ftjax.models.heads import Head, classify
from ftjax.models.layers import (
    ACTIVATIONS,
    AttentionCore,
    Bias,
    Dense,
    Dropout,
    Embedding,
    LayerNorm,
    Options,
    at_starts,
    encoder_mask,
    shift_right,
)
from ftjax.models.stack import Stack, matching_segments

Array = jax.Array
MODEL = "BartModel"
HF_PREFIX = "model"
DEFAULT_TARGETS = ("query", "value")
OFFSET = 2  # rows before the first position in the tables of learned positions


@dataclass(frozen=True)
class Config:
    """The architecture.

    Attributes:
        num_hidden_layers, num_decoder_layers: of the encoder and of the decoder.
        pre_norm: norms before the sub-layers and after the stack, as mBART's.
        embedding_norm: embeddings are normalized.
        sinusoidal: positions are computed, not learned.
        embedding_scale: what word embeddings are multiplied by.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_decoder_layers: int
    encoder_heads: int
    decoder_heads: int
    encoder_width: int
    decoder_width: int
    hidden_act: str
    max_position_embeddings: int
    pre_norm: bool
    embedding_norm: bool
    sinusoidal: bool
    embedding_scale: float
    dropout: float
    attention_dropout: float
    activation_dropout: float
    classifier_dropout: float
    start: int
    end: int
    initializer_range: float
    heads: Mapping[str, Head] = field(default_factory=dict, hash=False)
    options: Options = field(default_factory=Options)

    def dense(self, features: int, axes: tuple[str | None, str | None], name: str) -> Dense:
        return Dense(
            features, axes, dtype=self.options.dtype, stddev=self.initializer_range, name=name
        )


BIAS = {"logits": Part("final_logits_bias", raw=True)}


def heads_of(name: str) -> dict[str, Head]:
    """The heads that Hugging Face has, by the prefix of their classes."""
    if name == "Marian":
        return {"seq2seq_lm": Head("MarianMTModel", BIAS)}
    return {
        "seq2seq_lm": Head(f"{name}ForConditionalGeneration", BIAS),
        "classification": Head(
            f"{name}ForSequenceClassification",
            {"pooler": "classification_head.dense", "classifier": "classification_head.out_proj"},
            activation="tanh",
            drop_first=True,
        ),
        "span": Head(f"{name}ForQuestionAnswering", {"classifier": "qa_outputs"}),
    }


def from_hf(hf: Mapping[str, Any], options: Options) -> Config:
    """Reads config.json's mapping.

    Raises:
        UserError: an option that is not implemented.
    """
    family = hf["model_type"]
    if not hf.get("share_encoder_decoder_embeddings", True):
        raise UserError(f"{family}: share_encoder_decoder_embeddings=False is not implemented")
    act = hf.get("activation_function", "gelu")
    if act not in ACTIVATIONS:
        raise UserError(f"{family}: activation_function={act!r} is not implemented")
    name = {"bart": "Bart", "mbart": "MBart", "marian": "Marian"}[family]
    layers, size = hf["encoder_layers"], hf["d_model"]
    return Config(
        vocab_size=hf["vocab_size"],
        hidden_size=size,
        num_hidden_layers=layers,
        num_decoder_layers=hf["decoder_layers"],
        encoder_heads=hf["encoder_attention_heads"],
        decoder_heads=hf["decoder_attention_heads"],
        encoder_width=hf["encoder_ffn_dim"],
        decoder_width=hf["decoder_ffn_dim"],
        hidden_act=act,
        max_position_embeddings=hf.get("max_position_embeddings", 1024),
        pre_norm=family == "mbart",
        embedding_norm=family != "marian",
        sinusoidal=family == "marian",
        embedding_scale=size**0.5 if hf.get("scale_embedding") else 1.0,
        dropout=hf.get("dropout", 0.1),
        attention_dropout=hf.get("attention_dropout", 0.0),
        activation_dropout=hf.get("activation_dropout", 0.0),
        classifier_dropout=hf.get("classifier_dropout", 0.0),
        start=hf.get("decoder_start_token_id") or 0,
        end=hf.get("eos_token_id", 2),
        initializer_range=hf.get("init_std", 0.02),
        heads=heads_of(name),
        options=replace(options, segments=options.segments or (1,) * layers),
    )


def sinusoids(length: int, size: int) -> np.ndarray:
    """Sines, then cosines, of positions at wavelengths from 2π to 10000 · 2π: (length, size)."""
    angle = np.arange(length)[:, None] / 10000 ** (2 * np.arange((size + 1) // 2) / size)
    return np.concatenate([np.sin(angle), np.cos(angle[:, : size // 2])], 1).astype(np.float32)


class Attention(nn.Module):
    """Attention of `x` to `memory` with its output projection, without residual.

    Without `memory`, to the keys and values that were kept of it.
    """

    config: Config
    heads: int

    @nn.compact
    def __call__(self, x: Array, memory: Array | None, view: View) -> Array:
        c = self.config

        def project(x: Array, name: str) -> Array:
            y = c.dense(c.hidden_size, ("embed", "heads"), name)(x)
            return y.reshape(*x.shape[:-1], self.heads, -1)

        query, key, value = project(x, "query"), None, None
        if memory is not None:
            key, value = project(memory, "key"), project(memory, "value")
        key, value = Cache(name="cache")(key, value, view.slots)
        core = AttentionCore(c.attention_dropout, c.options.attention, name="core")
        context = core(query, key, value, view.mask).reshape(x.shape)
        out = c.dense(c.hidden_size, ("heads", "embed"), "output")(context)
        return Dropout(c.dropout, name="dropout")(out)


class FeedForward(nn.Module):
    """down(act(up(x)))."""

    config: Config
    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        x = ACTIVATIONS[c.hidden_act](c.dense(self.width, ("embed", "mlp"), "up")(x))
        x = Dropout(c.activation_dropout, name="inner_dropout")(x)
        x = c.dense(c.hidden_size, ("mlp", "embed"), "down")(x)
        return Dropout(c.dropout, name="dropout")(x)


class Layer(nn.Module):
    """Self-attention, in the decoder cross-attention, and feed-forward, each with its norm."""

    config: Config
    decoder: bool

    @nn.compact
    def __call__(
        self,
        x: Array,
        view: View,
        memory: Array | None = None,
        memory_view: View | None = None,
    ) -> Array:
        c = self.config
        heads = c.decoder_heads if self.decoder else c.encoder_heads

        def around(x: Array, name: str, part: Any) -> Array:
            norm = LayerNorm(1e-5, name=name)
            return x + part(norm(x)) if c.pre_norm else norm(x + part(x))

        x = nn.with_logical_constraint(x, ("batch", "length", "hidden"))
        own = Attention(c, heads, name="attention")
        x = around(x, "attention_norm", lambda y: own(y, y, view))
        if self.decoder:
            cross = Attention(c, heads, name="cross")
            x = around(x, "cross_norm", lambda y: cross(y, memory, memory_view))
        width = c.decoder_width if self.decoder else c.encoder_width
        return around(x, "ffn_norm", FeedForward(c, width, name="ffn"))


class Side(nn.Module):
    """The encoder or the decoder: positions, layers, and mBART's final norm."""

    config: Config
    segments: tuple[int, ...]
    decoder: bool

    @nn.compact
    def __call__(
        self,
        x: Array,
        view: View,
        memory: Array | None = None,
        memory_view: View | None = None,
        column: Array | None = None,
    ) -> Array:
        """Applies the layers; with `column`, to one token that stands there."""
        c = self.config
        if c.sinusoidal:
            table = sinusoids(c.max_position_embeddings, c.hidden_size)
            x = x + (table[: x.shape[1]] if column is None else jnp.asarray(table)[column])
        else:
            size = c.max_position_embeddings + OFFSET
            make = partial(Embedding, axes=(None, "embed"), stddev=c.initializer_range)
            table = make(size, c.hidden_size, name="positions")
            x = x + (table.first(x.shape[1], OFFSET) if column is None else table(column + OFFSET))
        if c.embedding_norm:
            x = LayerNorm(1e-5, name="embedding_norm")(x)
        x = Dropout(c.dropout, name="dropout")(x.astype(c.options.dtype))
        stack = Stack(
            lambda make, name, last: make(c, self.decoder, name=name),
            Layer,
            self.segments,
            c.options.remat,
            name="layers",
        )
        x = stack(x, view, memory, memory_view)
        return LayerNorm(1e-5, name="final_norm")(x) if c.pre_norm else x


class Model(nn.Module):
    """BART under a head.

    Attributes:
        config: the architecture.
        head: None gives the decoder's hidden states; "seq2seq_lm" float32 logits (batch, target
            length, vocabulary); "classification" (batch, labels), of the decoder where the input
            ends; "span" (batch, length, 2), of the decoder.
        labels: number of labels.

    Where the collection "cache" is mutable, keys and values are kept for generation; then `column`
    is where the one token of `decoder_input_ids` (batch, 1) stands. See
    `ftjax.models.decoder.Model`, also for `features`.
    """

    config: Config
    head: str | None = None
    labels: int = 2
    pooling: str = "end"

    @nn.compact
    def __call__(
        self,
        input_ids: Array | None = None,
        attention_mask: Array | None = None,
        decoder_input_ids: Array | None = None,
        decoder_attention_mask: Array | None = None,
        column: Array | None = None,
        features: Array | None = None,
        features_only: bool = False,
    ) -> Array:
        if features is not None:
            return self.classify(features)
        c = self.config
        words = Embedding(c.vocab_size, c.hidden_size, stddev=c.initializer_range, name="words")
        keep = self.is_mutable_collection("cache") and not self.is_initializing()
        memory, memory_view = None, View(encoder_mask(attention_mask, None), column)
        if column is None:
            encoder = Side(c, c.options.segments, False, name="encoder")
            memory = encoder(words(input_ids) * c.embedding_scale, View(memory_view.mask))
            slots = jnp.arange(memory.shape[1]) if keep else None
            memory_view = memory_view._replace(slots=slots)
        if decoder_input_ids is None:
            start = c.start
            if c.pre_norm:  # mBART's texts end with their language, which starts the target
                start = at_starts(
                    input_ids, last_tokens(input_ids.shape, attention_mask, None, None)
                )
            decoder_input_ids = shift_right(input_ids, start)
        segments = matching_segments(c.options.segments, c.num_decoder_layers)
        length = decoder_input_ids.shape[1]
        if column is None:
            view = prompt_view(length, decoder_attention_mask, keep=keep)
        else:
            view = token_view(column, decoder_attention_mask)
        decoder = Side(c, segments, True, name="decoder")
        x = words(decoder_input_ids) * c.embedding_scale
        x = decoder(x, view, memory, memory_view, column)
        x = x[:, -1:] if keep else x
        if self.head is None:
            return x
        x = x.astype(jnp.float32)
        if self.head == "seq2seq_lm":
            bias = Bias((1, c.vocab_size), (None, "vocab"), name="logits")
            return x @ words.embedding.T.astype(x.dtype) + bias()
        if self.head == "span":
            return Dense(2, ("embed", None), stddev=c.initializer_range, name="classifier")(x)
        ends = last_tokens(x.shape[:2], (input_ids == c.end).astype(jnp.int32), None, None)
        x = at_starts(x, ends)[:, 0]
        return x if features_only else self.classify(x)

    def classify(self, x: Array) -> Array:
        c = self.config
        head = c.heads[self.head]
        return classify(head, x, self.labels, c.classifier_dropout, c.initializer_range)


def hf_modules(config: Config) -> dict[str, str | Part]:
    """Our module path → where it is stored, for unrolled layers."""
    names: dict[str, str | Part] = {"words": "shared"}
    for side, count in (
        ("encoder", config.num_hidden_layers),
        ("decoder", config.num_decoder_layers),
    ):
        names[f"{side}/positions"] = f"{side}.embed_positions"
        names[f"{side}/embedding_norm"] = f"{side}.layernorm_embedding"
        names[f"{side}/final_norm"] = f"{side}.layer_norm"
        for i in range(count):
            ours, theirs = f"{side}/layers/layer_{i}", f"{side}.layers.{i}"
            names[f"{ours}/attention_norm"] = f"{theirs}.self_attn_layer_norm"
            names[f"{ours}/ffn_norm"] = f"{theirs}.final_layer_norm"
            names[f"{ours}/ffn/up"] = f"{theirs}.fc1"
            names[f"{ours}/ffn/down"] = f"{theirs}.fc2"
            kinds = [("attention", "self_attn")]
            if side == "decoder":
                names[f"{ours}/cross_norm"] = f"{theirs}.encoder_attn_layer_norm"
                kinds.append(("cross", "encoder_attn"))
            for kind, place in kinds:
                for name in ("query", "key", "value"):
                    names[f"{ours}/{kind}/{name}"] = f"{theirs}.{place}.{name[0]}_proj"
                names[f"{ours}/{kind}/output"] = f"{theirs}.{place}.out_proj"
    return names
