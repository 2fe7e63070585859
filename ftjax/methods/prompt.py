"""Prompt tuning (Lester et al. 2021) and P-tuning (Liu et al. 2021): learned input embeddings."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.base_model import Base
from ftjax.errors import require
from ftjax.leaf import leaf
from ftjax.methods.initializers import STANDARD_NORMAL
from ftjax.methods.interception import ROOT, Interceptor, at, nested
from ftjax.methods.method import FREEZE_REST, Method, head_rule
from ftjax.methods.prompt_encoders import Get, linear, lstm
from ftjax.methods.relay import Relay
from ftjax.methods.virtual_tokens import Positions, grown_call, inserted
from ftjax.options import Natural, Positive
from ftjax.partition import Rules
from ftjax.paths import Flat

Array = jax.Array


@dataclass(frozen=True)
class SoftPrompt(Method):
    """k learned vectors before the embeddings of each example; all else but the head is frozen.

    They take positions 0 to k - 1, and are not scaled where embeddings are (Gemma's). As in `peft`,
    a classifier that reads the first token (BERT's) reads the first vector instead, and mean
    pooling includes them; outputs of each token are those of real tokens alone. The encoder of
    encoder-decoders has them (`peft` trains as many more, unused). Packed examples have each k.

    Attributes:
        length: k.
    """

    length: Positive = 20

    identity: ClassVar = False

    @property
    def columns(self) -> int:
        return self.length

    @property
    def inserted(self) -> int:
        return self.length

    def rules(self, base: Base) -> Rules:
        return ((r"prompt_.*", "prompt"), head_rule(base), FREEZE_REST)

    def vectors(self, get: Get, width: int) -> Array:
        """The vectors (k, width), from parameters that `get` gives."""
        raise NotImplementedError

    def exported(self, base: Base, params: Flat) -> Array:
        """The vectors (k, d), as `peft` stores them in `prompt_embeddings`."""
        return self.vectors(lambda name, *_: params[name], base.words_shape[1])

    def interceptor(self, base: Base) -> Interceptor:
        vectors: Relay[tuple[Array, Positions | None]] = Relay()

        def table(module: nn.Module) -> Array:
            return self.vectors(partial(leaf, module), base.words_shape[1]) / base.embedding_scale

        def embedded(module: nn.Module, call: Callable, ids: Array) -> Array:
            x, prompt = call(ids), vectors.take()  # of the rows: other look-ups come later
            return x if prompt is None else inserted(x, *prompt)

        grown = grown_call(base, self.length, table, vectors)
        return nested(at(ROOT, grown), at({base.words}, embedded))


@dataclass(frozen=True)
class PromptTuning(SoftPrompt):
    """The vectors themselves are the parameters: k d of them (Lester et al. 2021, sec. 2).

    For models of billions of parameters, where it comes close to full fine-tuning, and for one
    base that serves many tasks. Equal to `peft`'s PromptTuningConfig.

    Attributes:
        init: "random" (N(0, 1)), "vocabulary" (embeddings of random words), or "text" (those of
            `text`, over and over or cut to k).
        text: best what the task is, in words.
    """

    init: Literal["random", "vocabulary", "text"] = "random"
    text: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(self.text) == (self.init == "text"), "method.text goes with method.init='text'"
        )

    def vectors(self, get: Get, width: int) -> Array:
        return get("prompt_embedding", STANDARD_NORMAL, (self.length, width), (None, "embed"))

    def initialize(self, base: Base, params: Flat, key: Array) -> Flat:
        if self.init == "random":
            return {}
        if self.init == "vocabulary":
            ids = jax.random.randint(key, (self.length,), 0, base.words_shape[0])
        else:
            tokens = base.tokenize(self.text)
            require(len(tokens) > 0, f"method.text={self.text!r} has no tokens")
            ids = jnp.resize(jnp.asarray(tokens), self.length)
        rows = params[f"{base.words}/embedding"][ids].astype(jnp.float32)
        return {"prompt_embedding": rows * base.embedding_scale}


@dataclass(frozen=True)
class PTuning(SoftPrompt):
    """The vectors are what an encoder makes of k embeddings (Liu et al. 2021, sec. 3.2).

    "mlp" is Linear-ReLU-Linear-ReLU-Linear: k d + 3 (d² + d) parameters where the width is d.
    "lstm" is two bidirectional LSTM layers, then Linear(2w, 2w)-ReLU-Linear(2w, d). Checkpoints
    keep the encoder; only its vectors need to be stored with a finished model. Equal to `peft`'s
    PromptEncoderConfig. For prompts that train badly as they are.

    Attributes:
        encoder: "mlp" or "lstm".
        width: w, of the encoder; 0 for d.
    """

    encoder: Literal["mlp", "lstm"] = "mlp"
    width: Natural = 0

    def vectors(self, get: Get, width: int) -> Array:
        x = get("prompt_embedding", STANDARD_NORMAL, (self.length, width), (None, "embed"))
        inner, wide = self.width or width, 2 * (self.width or width)
        if self.encoder == "mlp":
            sizes = (inner, inner, width)
        else:
            for layer in range(2):
                name = f"prompt_lstm_{layer}"
                forth = lstm(get, f"{name}_forth", x, inner, False)
                back = lstm(get, f"{name}_back", x, inner, True)
                x = jnp.concatenate([forth, back], -1)
            sizes = (wide, width)
        for number, size in enumerate(sizes):
            x = linear(get, f"prompt_dense_{number}", nn.relu(x) if number else x, size)
        return x
