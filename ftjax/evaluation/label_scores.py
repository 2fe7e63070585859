"""What a model that is not trained says of each label: by likelihood, at a mask, by similarity."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import jax
import jax.numpy as jnp
import numpy as np

from ftjax import methods
from ftjax.config import default_config
from ftjax.data.encode import Examples, encode
from ftjax.data.planning import bucket_layout
from ftjax.data.sources import Split
from ftjax.errors import UserError, require
from ftjax.evaluation.forward import Forward
from ftjax.evaluation.prompts import FIELDS, Row, Writer, nearest_rows, rows_of
from ftjax.formats.folder import load_tokenizer, require_same
from ftjax.generation.decode import next_logits, read_prompt
from ftjax.methods.prompting import (
    CONTENT_FREE,
    SCALE,
    Prompting,
    calibrated,
    fill,
    label_means,
    similarities,
)
from ftjax.paths import Flat
from ftjax.setup.examples import choose_layout, with_targets
from ftjax.setup.model import Run, place_model
from ftjax.tuned import Tuned
from ftjax.workdir.records import read_rows
from ftjax.workdir.result import read_result

Array = jax.Array
NEIGHBOUR_LENGTH = 128  # tokens of a text that its neighbours are found by
POOL = "demonstrations.jsonl"  # of a work folder: the training rows that demonstrate
MULTIPLE = 16  # of lengths that prompts are padded to: few programs for several splits


def likelihoods(
    tuned: Tuned, labels: Sequence[Sequence[int]], params: Flat, batch: Mapping[str, Array]
) -> Array:
    """Mean log-probability of each label's tokens after each prompt (Brown et al. 2020).

    A prompt is read once; labels of several tokens go on from its keys and values.

    Args:
        tuned: a model under "causal_lm".
        labels: tokens of each.
        params: flat parameters.
        batch: input_ids and attention_mask (rows, length), padded on the right.

    Returns:
        (rows, labels).
    """
    sizes = np.array([len(tokens) for tokens in labels])
    table = np.array([[*tokens, *[0] * (sizes.max() - len(tokens))] for tokens in labels])
    mask = batch["attention_mask"]
    rows, length = mask.shape
    turned = (jnp.arange(length) + mask.sum(1, keepdims=True)) % length  # padding to the left
    inputs = {
        name: jnp.take_along_axis(batch[name], turned, 1)
        for name in ("input_ids", "attention_mask")
    }
    logits, cache, prompt = read_prompt(tuned, params, inputs, int(sizes.max()))
    total = jax.nn.log_softmax(logits)[:, table[:, 0]]
    longer = np.flatnonzero(sizes > 1)
    if len(longer):

        def rest(tokens: Array) -> Array:
            def step(cache: Any, at: tuple[Array, Array, Array]) -> tuple[Any, Array]:
                last, token, count = at
                last = jnp.full(rows, last)
                logits, cache = next_logits(tuned, params, cache, prompt, last, count)
                return cache, jax.nn.log_softmax(logits)[:, token]

            steps = (tokens[:-1], tokens[1:], jnp.arange(1, len(tokens)))
            return jax.lax.scan(step, cache, steps)[1]

        log_p = jax.lax.map(rest, jnp.asarray(table[longer]))  # (longer, tokens - 1, rows)
        real = np.arange(1, sizes.max()) < sizes[longer, None]
        total = total.at[:, longer].add((log_p * real[..., None]).sum(1).T)
    return total / sizes


def mask_scores(
    tuned: Tuned, words: Sequence[Sequence[int]], params: Flat, batch: Mapping[str, Array]
) -> Array:
    """Log-probability of each word's one token at the mask: (rows, words).

    `batch` has "mask_place" (rows,) besides what the model reads.
    """
    logits = tuned.apply(params, batch)
    at = jnp.take_along_axis(logits, batch["mask_place"][:, None, None], 1)[:, 0]
    return jax.nn.log_softmax(at)[:, np.array(words)[:, 0]]


class Scored(NamedTuple):
    """What one template gives of a split.

    Attributes:
        logits: (rows, labels).
        examples: what was read; targets where the split is labelled.
        fewer: rows that lost demonstrations, since they would not have fitted.
    """

    logits: np.ndarray
    examples: Examples
    fewer: int = 0


class Embedder:
    """Sentence embeddings of a model in place."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.forward = Forward(run.mesh, run.config.train.eval_batch_size, run.tuned.apply)

    def __call__(self, split: Split) -> tuple[np.ndarray, Examples]:
        """Embeddings (rows, features), and the tokens they are of."""
        run = self._run
        examples = encode(split, run.task, run.folder, run.config.data.max_length)
        batch_size = run.config.train.eval_batch_size
        layout = choose_layout(run.config, run.mesh, [examples], batch_size)
        return self.forward(run.trainable, run.frozen, examples, layout), examples


def split_of(rows: Sequence[Row]) -> Split:
    """Rows without their labels, as a split."""
    columns = {name: [row[name] for row in rows] for name in FIELDS[:2] if name in rows[0]}
    columns["row"] = list(range(1, len(rows) + 1))
    return Split("method.templates", datasets.Dataset.from_dict(columns))


class BySimilarity:
    """Scores labels by how similar the sentences of their words are to a text.

    Args:
        run: a sentence encoder.
        method: the method.
        words: name of a label → its words.

    Raises:
        UserError: options that do not go with sentence encoders.
    """

    def __init__(self, run: Run, method: Prompting, words: Mapping[str, Sequence[str]]) -> None:
        for option in ("shots", "calibrate", "instruction"):
            value = getattr(method, option)
            require(not value, f"method.{option}={value!r} needs a causal or masked model")
        self._embed, self._words = Embedder(run), words

    @property
    def compile_seconds(self) -> float:
        return self._embed.forward.compile_seconds

    def __call__(self, split: Split, templates: Sequence[str]) -> list[Scored]:
        """What each template gives."""
        texts, examples = self._embed(split)
        words = list(chain.from_iterable(self._words.values()))
        filled = [{"text": fill(t, {"label": word})} for t in templates for word in words]
        labels = self._embed(split_of(filled))[0].reshape(len(templates), len(words), -1)
        scores = [_of_labels(similarities(texts, each), self._words) for each in labels]
        return [Scored(SCALE * logits, examples) for logits in scores]


class Demonstrations:
    """What demonstrates: a pool, or those of it that are nearest to a row.

    Args:
        run: the model that is asked.
        names: of the labels.
        method: the method.
        pool: see `ftjax.evaluation.prompts.draw`.
    """

    def __init__(
        self, run: Run, names: tuple[str, ...], method: Prompting, pool: Sequence[Row]
    ) -> None:
        self._pool, self._shots, self._embed = pool, method.shots, None
        if pool and method.demonstrations == "nearest":
            self._embed = Embedder(_encoder(run, names))
            self._embedded, _ = self._embed(split_of(pool))

    @property
    def compile_seconds(self) -> float:
        return self._embed.forward.compile_seconds if self._embed else 0.0

    def __call__(self, split: Split, rows: Sequence[Row]) -> list[Sequence[Row]]:
        """Those of each row of a split."""
        if self._embed is None:
            return [self._pool] * len(rows)
        embedded, _ = self._embed(split)
        likeness = similarities(embedded, self._embedded)
        chosen = nearest_rows(likeness, rows, self._pool, self._shots)
        return [[self._pool[i] for i in numbers] for numbers in chosen]


class ByPrompts:
    """Scores labels by how likely their words are after a prompt, or at its mask.

    Args:
        run: a causal or masked language model.
        method: the method.
        words: name of a label → its words.
        demonstrations: of the prompts.
    """

    def __init__(
        self,
        run: Run,
        method: Prompting,
        words: Mapping[str, Sequence[str]],
        demonstrations: Demonstrations,
    ) -> None:
        self._run, self._method, self._words = run, method, words
        self._tokenizer, self._demonstrations = load_tokenizer(run.folder), demonstrations
        self._forwards: dict[Any, Forward] = {}  # by the tokens of the labels

    @property
    def compile_seconds(self) -> float:
        own = sum(forward.compile_seconds for forward in self._forwards.values())
        return own + self._demonstrations.compile_seconds

    def __call__(self, split: Split, templates: Sequence[str]) -> list[Scored]:
        """What each template gives."""
        rows = rows_of(split)
        demonstrations = self._demonstrations(split, rows)
        return [self._by_prompt(rows, demonstrations, template) for template in templates]

    def _by_prompt(
        self, rows: Sequence[Row], demonstrations: Sequence[Sequence[Row]], template: str
    ) -> Scored:
        max_length = self._run.config.data.max_length
        writer = Writer(self._method, template, self._words, self._tokenizer, max_length)
        examples, fitting = writer(rows, demonstrations)
        logits = self._run_model(writer, examples)
        if self._method.calibrate:
            logits = calibrated(logits, self._content_free(writer, fitting))
        lost = [len(a) < len(b) for a, b in zip(fitting, demonstrations, strict=True)]
        return Scored(logits, examples, sum(lost))

    def _content_free(self, writer: Writer, demonstrations: Sequence[Sequence[Row]]) -> np.ndarray:
        """Logits (rows, inputs, labels) of inputs without content after the same demonstrations."""
        keys = [tuple(map(id, rows)) for rows in demonstrations]
        different = dict(zip(keys, demonstrations, strict=True))
        inputs = [{"text": text, "text_pair": text} for text in CONTENT_FREE]
        shown = [rows for rows in different.values() for _ in inputs]
        examples, _ = writer(inputs * len(different), shown)
        logits = self._run_model(writer, examples).reshape(len(different), len(inputs), -1)
        number = {key: i for i, key in enumerate(different)}
        return logits[[number[key] for key in keys]]

    def _run_model(self, writer: Writer, examples: Examples) -> np.ndarray:
        """Logits (rows, labels) of prompts."""
        run, key = self._run, tuple(map(tuple, writer.labels))
        if key not in self._forwards:
            apply = partial(mask_scores if writer.template.masked else likelihoods, run.tuned, key)
            batch_size = run.config.train.eval_batch_size
            self._forwards[key] = Forward(run.mesh, batch_size, apply)
        layout = bucket_layout(examples.lengths, run.config.data.buckets, MULTIPLE)
        scores = self._forwards[key](run.trainable, run.frozen, examples, layout)
        return _of_labels(scores, self._words)


class Scorer:
    """Scores the labels of a split's rows, as the kind of model allows.

    Args:
        run: the model, under the head that its kind of prompts needs.
        names: of the labels.
        pool: what demonstrates; see `ftjax.evaluation.prompts.draw`.

    Raises:
        UserError: options that do not go with the kind of model.
    """

    def __init__(self, run: Run, names: tuple[str, ...], pool: Sequence[Row]) -> None:
        self._run, self._names = run, names
        method = methods.create(run.config.method)
        words = dict(zip(names, method.words_of(names), strict=True))
        if run.tuned.model.head == "embedding":
            self._score = BySimilarity(run, method, words)
        else:
            demonstrations = Demonstrations(run, names, method, pool)
            self._score = ByPrompts(run, method, words, demonstrations)

    @property
    def compile_seconds(self) -> float:
        return self._score.compile_seconds

    def __call__(self, split: Split, templates: Sequence[str]) -> list[Scored]:
        """What each template gives."""
        task, names = self._run.task, self._names
        return [
            scored._replace(examples=with_targets(scored.examples, task, split, names))
            for scored in self._score(split, templates)
        ]


def _of_labels(scores: np.ndarray, words: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Scores of all words in turn → (rows, labels)."""
    return label_means(scores, [len(of_label) for of_label in words.values()])


def announce(split: str, template: str, scored: Scored) -> None:
    """Says what did not fit."""
    rows, cut = len(scored.logits), scored.examples.truncated
    if jax.process_index() == 0 and (scored.fewer or cut):
        print(
            f"{split}, template {template!r}: data.max_length leaves {scored.fewer} of {rows} rows "
            f"fewer demonstrations, and cuts the text of {cut}"
        )


def score_chosen(run: Run, names: tuple[str, ...], workdir: Path, split: Split) -> Scored:
    """What the template chosen in a work folder gives of another split."""
    result = read_result(workdir)
    require_same(workdir, result["base"], run.folder)
    template = result["template"]
    (scored,) = Scorer(run, names, read_rows(workdir / POOL))(split, [template])
    announce(split.file, template, scored)
    return scored


def _encoder(run: Run, names: tuple[str, ...]) -> Run:
    """The sentence encoder that finds nearest demonstrations."""
    config = default_config("prompting", run.config.task.name)
    config.model.path, config.method.kind = run.config.method.encoder, "sentence"
    rows = run.config.train.eval_batch_size
    config.mesh, config.train.batch_size, config.train.eval_batch_size = run.config.mesh, rows, rows
    config.data.max_length = min(run.config.data.max_length, NEIGHBOUR_LENGTH)
    config.data.buckets = run.config.data.buckets
    try:
        return place_model(config, names)
    except UserError as error:
        raise UserError(f"method.encoder: {error}") from error
