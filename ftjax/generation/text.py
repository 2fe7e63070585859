"""Texts in, texts out: the compiled parts of a generation around a tokenizer."""

import math
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ftjax.errors import UserError
from ftjax.generation import beam, decode, speculation
from ftjax.generation.prompts import Messages, PromptEncoder
from ftjax.generation.settings import Settings
from ftjax.parallel.mesh import logical_axes
from ftjax.paths import Flat
from ftjax.tuned import Tuned


class Text(NamedTuple):
    """What was written.

    Attributes:
        text: without the end.
        log_probability: Σ of its tokens, the end among them; of beams under what is asked of
            tokens, else as the model has them.
        tokens: how many.
    """

    text: str
    log_probability: float
    tokens: int

    def row(self) -> dict[str, Any]:
        """As predictions have it; "probability" is the geometric mean of its tokens'."""
        return {
            "written": self.text,
            "log_probability": round(self.log_probability, 6),
            "probability": round(math.exp(self.log_probability / max(self.tokens, 1)), 6),
        }


class Generator:
    """Continues texts. Programs are compiled once for each padded length and batch size.

    Args:
        tuned: a model under "causal_lm" or "seq2seq_lm".
        params: flat parameters, in place.
        tokenizer: of `transformers`.
        settings: how tokens are chosen.
        stop: strings that end a text; they are not part of it.
        longest: tokens of a prompt that are read, where the model has room for as many: a longer
            one is cut as encoding cuts texts, or, where it is gone on from itself, at its start.
            None: it is refused.
        rewrite: what is made of a prompt before it is read; raises ValueError.
        draft: a model of the same words that guesses `num_assistant_tokens`, and its parameters.

    Attributes:
        encode: makes tokens of prompts.
        settings: as given.
    """

    def __init__(
        self,
        tuned: Tuned,
        params: Flat,
        tokenizer: Any,
        settings: Settings,
        stop: Sequence[str] = (),
        longest: int | None = None,
        rewrite: Callable[[str | Messages], str | Messages] | None = None,
        draft: tuple[Tuned, Flat] | None = None,
    ) -> None:
        self.encode = PromptEncoder.of(tuned, settings, tokenizer, longest, rewrite)
        self.settings, self._stop = settings, tuple(stop)
        self._tuned, self._params = tuned, params
        model = (tuned, settings)
        if stop and settings.is_beam_search:
            raise UserError("stop strings do not go with beam search")
        search = beam if settings.is_beam_search else decode
        steps = search
        if settings.ahead or draft is not None:
            assistant, draft_params = draft or (None, None)
            speculation.check(tuned, settings, assistant)
            steps, model = speculation, (*model, assistant)
            self._params = speculation.Params(params, draft_params)
        # Tokens are read by every host, wherever their rows were computed.
        whole = NamedSharding(self._mesh, PartitionSpec())
        read = dict.fromkeys(search.READ, whole)
        placed = search.State(**{name: read.get(name) for name in search.State._fields})
        self._start = jax.jit(partial(steps.start, *model), out_shardings=placed)
        self._go_on = jax.jit(partial(steps.go_on, *model), donate_argnums=1, out_shardings=placed)

    def with_params(self, params: Flat) -> "Generator":
        """The same programs with other parameters of the same shapes."""
        other, before = copy(self), self._params
        guesses = isinstance(before, speculation.Params)
        other._params = before._replace(model=params) if guesses else params
        return other

    def __call__(
        self, prompts: Sequence[str | Messages], numbers: Sequence[int] | None = None
    ) -> list[list[str]]:
        """The continuations of each prompt, `num_return_sequences` of them.

        Args:
            prompts: texts, or chats of {"role", "content"}, perhaps with tools: see `Messages`.
            numbers: of the prompts, which sampling and messages go by; None for 0, 1, ...
        """
        texts, _ = self._whole(prompts, numbers)
        return self._of_prompts(texts)

    def likely(
        self, prompts: Sequence[str | Messages], numbers: Sequence[int] | None = None
    ) -> list[list[Text]]:
        """As a call, with how probable the texts are; without stop strings."""
        texts, state = self._whole(prompts, numbers)
        if self.settings.is_beam_search:
            many = self.settings.num_return_sequences
            tokens = np.asarray(state.done_tokens)[:, :many].reshape(len(texts), -1)
            scores = np.asarray(state.done_scores, np.float64)[:, :many].reshape(-1)
        else:
            tokens = np.asarray(state.tokens)[:, : int(state.count)]
            scores = np.asarray(state.likelihood, np.float64)
        counts = np.array([min(len(self._ended(row)) + 1, len(row)) for row in tokens])
        if self.settings.is_beam_search:
            scores = scores * counts**self.settings.length_penalty
        pairs = zip(texts, scores.tolist(), counts.tolist(), strict=True)
        return self._of_prompts([Text(*fields) for fields in pairs])

    def _whole(
        self, prompts: Sequence[str | Messages], numbers: Sequence[int] | None
    ) -> tuple[list[str], Any]:
        """The whole texts, and the last state."""
        every = 16 if self._stop else self.settings.max_new_tokens
        *_, last = self._parts(prompts, every, numbers)
        return last

    def _of_prompts(self, texts: list[Any]) -> list[list[Any]]:
        many = self.settings.num_return_sequences
        return [texts[i : i + many] for i in range(0, len(texts), many)]

    def stream(
        self,
        prompts: Sequence[str | Messages],
        every: int = 1,
        numbers: Sequence[int] | None = None,
    ) -> Iterator[list[str]]:
        """The texts so far, after each `every` tokens; the last ones are whole.

        What may turn out to be a part of a character or of a stop string is held back. Beam search
        gives its texts at the end alone.
        """
        return (texts for texts, _ in self._parts(prompts, every, numbers))

    def _parts(
        self, prompts: Sequence[str | Messages], every: int, numbers: Sequence[int] | None
    ) -> Iterator[tuple[list[str], Any]]:
        """As `stream`, with the state after each part."""
        limit = self.settings.max_new_tokens
        numbers = np.arange(len(prompts)) if numbers is None else np.asarray(numbers)
        batch = self.encode(prompts, numbers) | {"numbers": numbers}
        decode.check(self._tuned, self.settings, batch["input_ids"].shape[1])
        with logical_axes(self._mesh):
            state = self._start(self._params, batch)
            if self.settings.is_beam_search:
                state = self._go_on(self._params, state, np.int32(limit))
                best = np.asarray(state.done_tokens)[:, : self.settings.num_return_sequences]
                yield [self._text(row) for row in best.reshape(-1, limit)], state
                return
        count = 1
        while True:
            texts = [self._until_stop(row) for row in np.asarray(state.tokens)[:, :count]]
            finished = np.asarray(state.finished) | [stopped for _, stopped in texts]
            if finished.all() or count == limit:
                yield [text for text, _ in texts], state
                return
            shown = [
                text if whole else self._certain(text)
                for (text, _), whole in zip(texts, finished, strict=True)
            ]
            yield shown, state
            count = min(count + every, limit)
            finished = jax.device_put(finished, state.finished.sharding)
            state = state._replace(finished=finished)
            with logical_axes(self._mesh):
                state = self._go_on(self._params, state, np.int32(count))

    @property
    def _mesh(self) -> jax.sharding.Mesh:
        return jax.tree.leaves(self._params)[0].sharding.mesh

    def _ended(self, tokens: np.ndarray) -> np.ndarray:
        """Those before one that ends a text."""
        ended = np.flatnonzero(np.isin(tokens, self.settings.end))
        return tokens[: ended[0]] if len(ended) else tokens

    def _text(self, tokens: np.ndarray) -> str:
        return self.encode.tokenizer.decode(self._ended(tokens), skip_special_tokens=True)

    def _until_stop(self, tokens: np.ndarray) -> tuple[str, bool]:
        """The text before the first stop string, and whether there is one.

        Strings are looked for in a text with its special tokens, of which the text that is
        returned has none.
        """
        tokens = self._ended(tokens)
        decode = partial(self.encode.tokenizer.decode, skip_special_tokens=False)
        whole = decode(tokens) if self._stop else ""
        starts = [whole.find(stop) for stop in self._stop if stop in whole]
        if not starts:
            return self.encode.tokenizer.decode(tokens, skip_special_tokens=True), False
        at, count = min(starts), len(tokens)
        while len(before := decode(tokens[:count])) > at or not whole.startswith(before):
            count -= 1
        # The token that the string begins in may begin before it.
        text = self.encode.tokenizer.decode(tokens[:count], skip_special_tokens=True)
        return text + whole[len(before) : at], True

    def _certain(self, text: str) -> str:
        text = text.rstrip("\ufffd")
        for size in range(max(map(len, self._stop), default=1) - 1, 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stop if text):
                return text[:-size]
        return text
