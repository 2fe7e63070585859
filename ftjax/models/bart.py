"""BART (Lewis et al. 2020), mBART (Liu et al. 2020) and Marian (Junczys-Dowmunt et al. 2018)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ftjax.errors import UserError
from ftjax.models import encoder_decoder
from ftjax.models.config import inside
from ftjax.models.config_keys import first_token, keys
from ftjax.models.encoder_decoder import Attention
from ftjax.models.feed_forward import FeedForward
from ftjax.models.heads import Head, untied, with_dropouts
from ftjax.models.language_head import Scores, read_off, score, with_ones
from ftjax.models.layers import (
    ACTIVATIONS,
    Bias,
    Dropout,
    Embedding,
    Kernel,
    LayerNorm,
    Options,
)
from ftjax.models.masks import View
from ftjax.models.pooling import at_starts, last_tokens
from ftjax.models.stack import Stack
from ftjax.names import Part

Array = jax.Array
MODEL = "BartModel"
HF_PREFIX = "model"
DEFAULT_TARGETS = ("query", "value")
OFFSET = 2  # rows before the first position in the tables of learned positions


@dataclass(frozen=True, kw_only=True)
class Config(encoder_decoder.Config):
    """BART's; where words are not tied, there are three tables.

    Attributes:
        pre_norm: norms before the sub-layers and after the stack, as mBART's.
        embedding_norm: embeddings are normalized.
        sinusoidal: positions are computed, not learned.
    """

    encoder_heads: int
    decoder_heads: int
    encoder_width: int
    decoder_width: int
    max_position_embeddings: int
    pre_norm: bool
    embedding_norm: bool
    sinusoidal: bool


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
ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
LAYER = {
    "attention_norm": "self_attn_layer_norm",
    **inside("attention", "self_attn", ATTENTION),
    "ffn_norm": "final_layer_norm",
    "ffn/up": "fc1",
    "ffn/down": "fc2",
}
CROSS = {
    "cross_norm": "encoder_attn_layer_norm",
    **inside("cross", "encoder_attn", ATTENTION),
}
SIDE = {
    "positions": "embed_positions",
    "embedding_norm": "layernorm_embedding",
    "final_norm": "layer_norm",
}
MODULES = {
    **inside("encoder", "encoder", SIDE),
    **inside("encoder/layers/layer_{}", "encoder.layers.{}", LAYER),
    **inside("decoder", "decoder", SIDE),
    **inside("decoder/layers/layer_{}", "decoder.layers.{}", {**LAYER, **CROSS}),
}
TIED = {"words": "shared"}
UNTIED = {  # then the shared table is of no use, but is there
    "words": Part("encoder.embed_tokens", copy="shared.weight"),
    "decoder_words": Part("decoder.embed_tokens", copy="shared.weight"),
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
    size, tied = hf["d_model"], hf.get("tie_word_embeddings", True)
    return Config(
        vocab_size=hf["vocab_size"],
        hidden_size=size,
        num_hidden_layers=hf["encoder_layers"],
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
        end=first_token(hf.get("eos_token_id", END[family])),
        initializer_range=hf.get("init_std", 0.02),
        tied=tied,
        heads=heads_of(name, tied, hf.get("classifier_dropout") or 0.0),
        modules=MODULES | (TIED if tied else UNTIED),
        options=options,
    ).segmented()


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
        attention = partial(Attention, c, heads, c.hidden_size // heads)

        def sublayer(x: Array, name: str, block: Any) -> Array:
            norm = LayerNorm(1e-5, name=name)
            return x + block(norm(x)) if c.pre_norm else norm(x + block(x))

        x = nn.with_logical_constraint(x, ("batch", "length", "hidden"))
        self_attention = attention(name="attention")
        x = sublayer(x, "attention_norm", lambda y: self_attention(y, y, view))
        if self.decoder:
            cross_attention = attention(name="cross")
            x = sublayer(x, "cross_norm", lambda y: cross_attention(y, memory, memory_view))
        width = c.decoder_width if self.decoder else c.encoder_width
        return sublayer(x, "ffn_norm", FeedForward(c, width, name="ffn"))


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
        start, cls = OFFSET, partial(Embedding, axes=(None, "embed"), stddev=c.initializer_range)
        if c.sinusoidal:
            start, cls = 0, Sinusoids
        table = cls(start + c.max_position_embeddings, c.hidden_size, name="positions")
        x = x + (table.first(x.shape[1], start) if column is None else table(column + start))
        if c.embedding_norm:
            x = LayerNorm(1e-5, name="embedding_norm")(x)
        x = Dropout(c.dropout, name="dropout")(x.astype(c.options.dtype))
        stack = Stack(
            lambda cls, name, last: cls(c, self.decoder, name=name),
            Layer,
            self.segments,
            c.options.remat,
            name="layers",
        )
        x = stack(x, view, memory, memory_view)
        return LayerNorm(1e-5, name="final_norm")(x) if c.pre_norm else x


class Model(encoder_decoder.Model):
    """BART under a head; see `ftjax.models.encoder_decoder.Model`."""

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
