"""T5 (Raffel et al. 2020), v1.0 and v1.1, mT5 and Flan: encoder-decoder with relative positions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar

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
from ftjax.models.language_head import LanguageHead, Scores, read_off, score
from ftjax.models.layers import (
    ACTIVATIONS,
    Dropout,
    Embedding,
    Options,
    RMSNorm,
)
from ftjax.models.masks import View, slot_columns
from ftjax.models.stack import Stack

Array = jax.Array
MODEL = "T5Model"
HF_PREFIX = ""
DEFAULT_TARGETS = ("query", "value")


@dataclass(frozen=True, kw_only=True)
class Config(encoder_decoder.Config):
    """T5's.

    Attributes:
        buckets, max_distance: of relative positions.
        scale_outputs: by 1 / √hidden_size, before words are read off.
        initializer_factor: of all standard deviations of initial kernels.
    """

    intermediate_size: int
    num_attention_heads: int
    head_dim: int
    norm_eps: float
    buckets: int
    max_distance: int
    scale_outputs: bool
    initializer_factor: float = 1.0
    biases: tuple[str, ...] = ()

    pre_norm: ClassVar[bool] = True

    @property
    def embedding_range(self) -> float:
        return self.initializer_factor

    def stddev(self, name: str) -> float:
        """By the features that come in; queries besides by a head's, since scores are not."""
        fan_in = {
            "query": self.hidden_size * self.head_dim,
            "output": self.num_attention_heads * self.head_dim,
            "down": self.intermediate_size,
        }.get(name, self.hidden_size)
        return self.initializer_factor * fan_in**-0.5


READ = (
    "vocab_size d_model d_kv d_ff num_layers num_decoder_layers num_heads feed_forward_proj "
    "dense_act_fn is_gated_act relative_attention_num_buckets relative_attention_max_distance "
    "dropout_rate classifier_dropout layer_norm_epsilon initializer_factor decoder_start_token_id "
    "pad_token_id eos_token_id tie_word_embeddings"
)
ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    "head_dim": "d_kv",
}
FIXED = {"is_decoder": (False,)}
INERT = "is_encoder_decoder"  # false in folders of the encoder alone
KEYS = {
    "t5": keys(f"{READ} scale_decoder_outputs", INERT, ALIASES, **FIXED),
    "mt5": keys(READ, INERT, ALIASES, **FIXED),
}
ATTENTION = {"query": "q", "key": "k", "value": "v", "output": "o"}
SELF = {"attention_norm": "0.layer_norm", **inside("attention", "0.SelfAttention", ATTENTION)}
CROSS = {"cross_norm": "1.layer_norm", **inside("cross", "1.EncDecAttention", ATTENTION)}
FFN = {
    "ffn_norm": "layer_norm",
    "ffn/gate": "DenseReluDense.wi_0",
    "ffn/up": "DenseReluDense.wi_1",
    "ffn/down": "DenseReluDense.wo",
}
RELATIVE = "block.0.layer.0.SelfAttention.relative_attention_bias"
MODULES = {
    "words": "shared",
    "encoder/relative/table": f"encoder.{RELATIVE}",
    **inside("encoder/layers/layer_{}", "encoder.block.{}.layer", SELF),
    **inside("encoder/layers/layer_{}", "encoder.block.{}.layer.1", FFN),
    "encoder/final_norm": "encoder.final_layer_norm",
    "decoder/relative/table": f"decoder.{RELATIVE}",
    **inside("decoder/layers/layer_{}", "decoder.block.{}.layer", {**SELF, **CROSS}),
    **inside("decoder/layers/layer_{}", "decoder.block.{}.layer.2", FFN),
    "decoder/final_norm": "decoder.final_layer_norm",
}
UNGATED = {
    "encoder/layers/layer_{}/ffn/up": "encoder.block.{}.layer.1.DenseReluDense.wi",
    "decoder/layers/layer_{}/ffn/up": "decoder.block.{}.layer.2.DenseReluDense.wi",
}


def heads_of(name: str, tied: bool, dropout: float) -> dict[str, Head]:
    """The heads that Hugging Face has, by the prefix of their classes."""
    heads = {
        "seq2seq_lm": Head(f"{name}ForConditionalGeneration", vocabulary="lm_head"),
        "classification": Head(
            f"{name}ForSequenceClassification",
            {"pooler": "classification_head.dense", "classifier": "classification_head.out_proj"},
            activation="tanh",
            prefix="transformer",
        ),
        "tokens": Head(
            f"{name}ForTokenClassification", {"classifier": "classifier"}, prefix="transformer"
        ),
        "span": Head(f"{name}ForQuestionAnswering", {"classifier": "qa_outputs"}),
    }
    heads = with_dropouts(heads, {"classification": (dropout, dropout), "tokens": dropout})
    return heads if tied else untied(heads, "lm_head")


def from_hf(hf: Mapping[str, Any], options: Options) -> Config:
    """Reads config.json's mapping.

    Raises:
        UserError: an option that is not implemented.
    """
    family = hf["model_type"]
    kind = hf.get("feed_forward_proj", "relu" if family == "t5" else "gated-gelu").split("-")
    act = {"gated-gelu": "gelu_new"}.get("-".join(kind), kind[-1])
    act = hf.get("dense_act_fn", act)
    if act not in ACTIVATIONS:
        raise UserError(f"{family}: feed_forward_proj={'-'.join(kind)!r} is not implemented")
    tied = hf.get("tie_word_embeddings", True)
    buckets = hf.get("relative_attention_num_buckets", 32)
    max_distance = hf.get("relative_attention_max_distance", 128)
    if max_distance <= buckets // 2:  # up to where each distance has a bucket of its own
        raise UserError(
            f"{family}: relative_attention_max_distance={max_distance} must be above half of "
            f"relative_attention_num_buckets={buckets}"
        )
    layers = hf["num_layers"]
    rate, gated = hf.get("dropout_rate", 0.1), hf.get("is_gated_act", kind[0] == "gated")
    return Config(
        vocab_size=hf["vocab_size"],
        hidden_size=hf["d_model"],
        intermediate_size=hf["d_ff"],
        num_hidden_layers=layers,
        num_decoder_layers=hf.get("num_decoder_layers") or layers,
        num_attention_heads=hf["num_heads"],
        head_dim=hf["d_kv"],
        hidden_act=act,
        gated=gated,
        norm_eps=hf.get("layer_norm_epsilon", 1e-6),
        buckets=buckets,
        max_distance=max_distance,
        dropout=rate,
        attention_dropout=rate,
        activation_dropout=rate,
        tied=tied,
        scale_outputs=hf.get("scale_decoder_outputs", tied and family == "t5"),
        start=hf.get("decoder_start_token_id", hf.get("pad_token_id", 0)) or 0,
        end=first_token(hf.get("eos_token_id", 1)),
        initializer_factor=hf.get("initializer_factor", 1.0),
        heads=heads_of(
            "MT5" if family == "mt5" else "T5", tied, hf.get("classifier_dropout") or 0.0
        ),
        modules=MODULES if gated else MODULES | UNGATED,
        options=options,
    ).segmented()


@lru_cache
def buckets_of(buckets: int, max_distance: int) -> np.ndarray:
    """Numbers of distances 0 to the largest: half exact, half logarithmic.

    In float32 and in the order of the reference, since a distance may lie on the edge of a bucket.
    """
    distance, exact = np.arange(max_distance + 1), buckets // 2
    size = np.maximum(distance, 1).astype(np.float32) / np.float32(exact)
    scale = np.float32(math.log(max_distance / exact))
    far = exact + (np.log(size) / scale * np.float32(buckets - exact)).astype(np.int32)
    return np.where(distance < exact, distance, np.minimum(far, buckets - 1)).astype(np.int32)


def bucket(distance: Array, buckets: int, max_distance: int, bidirectional: bool) -> Array:
    """Numbers of key position - query position, of which half are of keys to the right.

    Those farther away than the largest distance are as that.
    """
    side = jnp.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        side = (distance > 0) * buckets
        distance = jnp.abs(distance)
    else:
        distance = -jnp.minimum(distance, 0)
    return (
        side + jnp.asarray(buckets_of(buckets, max_distance))[jnp.minimum(distance, max_distance)]
    )


class RelativeBias(nn.Module):
    """What is added to the scores of each distance, shared by the layers of a stack."""

    config: Config
    bidirectional: bool

    @nn.compact
    def __call__(self, queries: Array, keys: Array) -> Array:
        """(1, heads, queries, keys), from where they stand."""
        c = self.config
        number = bucket(keys - queries[:, None], c.buckets, c.max_distance, self.bidirectional)
        table = Embedding(
            c.buckets,
            c.num_attention_heads,
            axes=(None, "heads"),
            stddev=c.initializer_factor * c.hidden_size**-0.5,
            name="table",
        )
        return table(number).transpose(2, 0, 1)[None]


class Layer(nn.Module):
    """Pre-norm self-attention, in the decoder cross-attention, and feed-forward."""

    config: Config

    @nn.compact
    def __call__(
        self,
        x: Array,
        view: View,
        bias: Array,
        memory: Array | None = None,
        memory_view: View | None = None,
    ) -> Array:
        c = self.config

        def norm(name: str) -> RMSNorm:
            return RMSNorm(c.norm_eps, name=name)

        x = nn.with_logical_constraint(x, ("batch", "length", "hidden"))
        attention = partial(Attention, c, c.num_attention_heads, c.head_dim, scale=1.0)
        y = norm("attention_norm")(x)
        x = x + attention(name="attention")(y, y, view, bias)
        if memory_view is not None:
            y = norm("cross_norm")(x)
            x = x + attention(name="cross")(y, memory, memory_view)
        return x + FeedForward(c, c.intermediate_size, name="ffn")(norm("ffn_norm")(x))


class Side(nn.Module):
    """The encoder or the decoder: layers, what they share, and a final norm."""

    config: Config
    segments: tuple[int, ...]
    bidirectional: bool

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
        x = Dropout(c.dropout, name="input_dropout")(x.astype(c.options.dtype))
        queries = keys = jnp.arange(x.shape[1])
        if column is not None:
            queries, keys = column[None], slot_columns(column, view.mask.shape[-1])
        bias = RelativeBias(c, self.bidirectional, name="relative")(queries, keys)
        stack = Stack(
            lambda cls, name, last: cls(c, name=name),
            Layer,
            self.segments,
            c.options.remat,
            name="layers",
        )
        x = RMSNorm(c.norm_eps, name="final_norm")(stack(x, view, bias, memory, memory_view))
        return Dropout(c.dropout, name="output_dropout")(x)


class Model(encoder_decoder.Model):
    """T5 under a head; see `ftjax.models.encoder_decoder.Model`."""

    config: Config

    def side(self, decoder: bool, segments: tuple[int, ...]) -> Side:
        return Side(self.config, segments, not decoder, name="decoder" if decoder else "encoder")

    def logits(self, x: Array, words: Embedding, *targets: Any) -> Array | Scores:
        c = self.config
        scale = c.hidden_size**-0.5 if c.scale_outputs else 1.0
        x = x * scale if targets else x
        if not c.tied:
            head = partial(LanguageHead, c.vocab_size, ("embed", "vocab"), False)
            output = head(stddev=c.hidden_size**-0.5, name="lm_head")(x, *targets)
        elif targets:
            output = score(x, words.embedding.T, *targets)
        else:
            output = read_off(x, words.embedding)
        return output if targets else output * scale
