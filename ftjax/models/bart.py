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
from ftjax.models import sequences
from ftjax.models.cache import View
from ftjax.models.decoder import last_tokens
from ftjax.models.heads import Head, untied, with_dropouts
from ftjax.models.keys import keys, one
from ftjax.models.layers import (
    ACTIVATIONS,
    Bias,
    Dense,
    Dropout,
    Embedding,
    Kernel,
    LayerNorm,
    Options,
    at_starts,
)
from ftjax.models.sequences import Attention
from ftjax.models.stack import Stack
from ftjax.models.vocabulary import Scores, read_off, score, with_ones
from ftjax.names import Part

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
        tied: one table embeds words on both sides and reads them off; else there are three.
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
    start: int
    end: int
    initializer_range: float
    tied: bool = True
    heads: Mapping[str, Head] = field(default_factory=dict, hash=False)
    options: Options = field(default_factory=Options)

    @property
    def embedding_stddev(self) -> float:
        return self.initializer_range

    def dense(self, features: int, axes: tuple[str | None, str | None], name: str) -> Dense:
        return Dense(
            features, axes, dtype=self.options.dtype, stddev=self.initializer_range, name=name
        )


LARGEST = 10**8  # numbers of a table that is computed, not stored
BIAS = {"logits": Part("final_logits_bias", raw=True, buffer=True)}


READ = (
    "vocab_size d_model encoder_layers decoder_layers encoder_attention_heads "
    "decoder_attention_heads encoder_ffn_dim decoder_ffn_dim activation_function "
    "max_position_embeddings scale_embedding dropout attention_dropout activation_dropout "
    "init_std decoder_start_token_id eos_token_id tie_word_embeddings"
)
INERT = "forced_eos_token_id"  # of generation
ALIASES = {
    "num_attention_heads": "encoder_attention_heads",
    "hidden_size": "d_model",
    "num_hidden_layers": "encoder_layers",
}
FIXED = {
    "encoder_layerdrop": (0.0,),
    "decoder_layerdrop": (0.0,),
    "is_decoder": (False,),
    "is_encoder_decoder": (True,),
}
KEYS = {
    "bart": keys(f"{READ} classifier_dropout", INERT, ALIASES, **FIXED),
    "mbart": keys(f"{READ} classifier_dropout", INERT, ALIASES, **FIXED),
    "marian": keys(
        f"{READ} decoder_vocab_size",
        INERT,
        ALIASES,
        **FIXED,
        share_encoder_decoder_embeddings=(True,),
    ),
}
# Where config.json does not say where decoders start, and texts end.
START, END = {"bart": 2, "mbart": 0, "marian": 58100}, {"bart": 2, "mbart": 2, "marian": 0}


def heads_of(name: str, tied: bool, dropout: float) -> dict[str, Head]:
    """The heads that Hugging Face has, by the prefix of their classes."""
    kind = "MTModel" if name == "Marian" else "ForConditionalGeneration"
    heads = {"seq2seq_lm": Head(f"{name}{kind}", BIAS, vocabulary="lm_head")}
    if name != "Marian":
        heads["classification"] = Head(
            f"{name}ForSequenceClassification",
            {"pooler": "classification_head.dense", "classifier": "classification_head.out_proj"},
            activation="tanh",
        )
        heads["span"] = Head(f"{name}ForQuestionAnswering", {"classifier": "qa_outputs"})
    heads = with_dropouts(heads, {"classification": (dropout, dropout)})
    return heads if tied else untied(heads, "lm_head")


def from_hf(hf: Mapping[str, Any], options: Options) -> Config:
    """Reads config.json's mapping.

    Raises:
        UserError: an option that is not implemented.
    """
    family = hf["model_type"]
    if hf.get("decoder_vocab_size") not in (None, hf["vocab_size"]):
        count = hf["decoder_vocab_size"]
        raise UserError(f"{family}: decoder_vocab_size={count} other than vocab_size")
    act = hf.get("activation_function", "gelu")
    if act not in ACTIVATIONS:
        raise UserError(f"{family}: activation_function={act!r} is not implemented")
    for side in ("encoder", "decoder"):
        key = f"{side}_attention_heads"
        if hf["d_model"] % hf[key]:
            raise UserError(f"{family}: {key}={hf[key]} does not divide d_model={hf['d_model']}")
    longest = hf.get("max_position_embeddings", 1024)
    if family == "marian" and longest * hf["d_model"] > LARGEST:
        raise UserError(
            f"{family}: max_position_embeddings={longest} by d_model={hf['d_model']} is a table of "
            f"more than {LARGEST} sines"
        )
    name = {"bart": "Bart", "mbart": "MBart", "marian": "Marian"}[family]
    layers, size = hf["encoder_layers"], hf["d_model"]
    tied = hf.get("tie_word_embeddings", True)
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
        max_position_embeddings=longest,
        pre_norm=family == "mbart",
        embedding_norm=family != "marian",
        sinusoidal=family == "marian",
        embedding_scale=size**0.5 if hf.get("scale_embedding") else 1.0,
        dropout=hf.get("dropout", 0.1),
        attention_dropout=hf.get("attention_dropout", 0.0),
        activation_dropout=hf.get("activation_dropout", 0.0),
        start=hf.get("decoder_start_token_id", START[family]) or 0,
        end=one(hf.get("eos_token_id", END[family])),
        initializer_range=hf.get("init_std", 0.02),
        tied=tied,
        heads=heads_of(name, tied, hf.get("classifier_dropout") or 0.0),
        options=replace(options, segments=options.segments or (1,) * layers),
    )


def sinusoids(length: int, size: int) -> np.ndarray:
    """Sines, then cosines, of positions at wavelengths from 2π to 10000 · 2π: (length, size)."""
    angle = np.arange(length)[:, None] / 10000 ** (2 * np.arange((size + 1) // 2) / size)
    return np.concatenate([np.sin(angle), np.cos(angle[:, : size // 2])], 1).astype(np.float32)


class Sinusoids(nn.Module):
    """A table of fixed positions, looked up as a learned one."""

    size: int
    features: int

    def __call__(self, ids: Array) -> Array:
        return jnp.asarray(sinusoids(self.size, self.features))[ids]

    def first(self, count: int, start: int = 0) -> Array:
        return sinusoids(start + count, self.features)[start:]


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
        attend = partial(Attention, c, heads, c.hidden_size // heads)

        def around(x: Array, name: str, part: Any) -> Array:
            norm = LayerNorm(1e-5, name=name)
            return x + part(norm(x)) if c.pre_norm else norm(x + part(x))

        x = nn.with_logical_constraint(x, ("batch", "length", "hidden"))
        own = attend(name="attention")
        x = around(x, "attention_norm", lambda y: own(y, y, view))
        if self.decoder:
            cross = attend(name="cross")
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
        start, make = OFFSET, partial(Embedding, axes=(None, "embed"), stddev=c.initializer_range)
        if c.sinusoidal:
            start, make = 0, Sinusoids
        table = make(start + c.max_position_embeddings, c.hidden_size, name="positions")
        x = x + (table.first(x.shape[1], start) if column is None else table(column + start))
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


class Model(sequences.Model):
    """BART under a head; see `ftjax.models.sequences.Model`."""

    config: Config

    @property
    def one_table(self) -> bool:
        return self.config.tied

    def side(self, decoder: bool, segments: tuple[int, ...]) -> Side:
        return Side(self.config, segments, decoder, name="decoder" if decoder else "encoder")

    def start(self, ids: Array, mask: Array | None) -> int | Array:
        if not self.config.pre_norm:
            return self.config.start
        # mBART's texts end with their language, which starts the target.
        return at_starts(ids, last_tokens(ids.shape, mask, None, None))

    def logits(self, x: Array, words: Embedding, *targets: Any) -> Array | Scores:
        c = self.config
        bias = Bias((1, c.vocab_size), (None, "vocab"), name="logits")()
        if c.tied:
            kernel = words.embedding.T
        else:
            head = Kernel(
                c.vocab_size, ("embed", "vocab"), stddev=c.initializer_range, name="lm_head"
            )
            kernel = head(x.shape[-1])
        if targets:
            return score(with_ones(x), jnp.concatenate([kernel, bias]), *targets)
        return read_off(x, kernel.T) + bias


def hf_modules(config: Config) -> dict[str, str | Part]:
    """Our module path → where it is stored, for unrolled layers."""
    names: dict[str, str | Part] = {"words": "shared"}
    if not config.tied:  # then the shared table is of no use, but is there
        names = {
            "words": Part("encoder.embed_tokens", copy="shared.weight"),
            "decoder_words": Part("decoder.embed_tokens", copy="shared.weight"),
        }
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
