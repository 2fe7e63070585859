"""The models that steps of `data.prepare` ask: a classifier, a language model, a masked one.

What they say is kept on disk by content, so that a run that is resumed, or another of a
comparison, need not ask again. On several hosts all have what the first one has.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ftjax import cache
from ftjax.data.encode import Examples, ragged
from ftjax.data.planning import bucket_layout
from ftjax.data.preparation.rewriting import rewritten
from ftjax.data.preparation.words import IS_HAN, WORD
from ftjax.data.sources import Split
from ftjax.errors import UserError, require
from ftjax.evaluation.forward import Forward
from ftjax.evaluation.predictor import open_predictor, open_writer
from ftjax.formats.folder import identity, load_tokenizer, locate
from ftjax.generation.batches import in_batches
from ftjax.generation.load import make_generator, open_model
from ftjax.parallel.agreement import broadcast, require_same
from ftjax.parallel.mesh import make_mesh
from ftjax.paths import Flat
from ftjax.remote import located
from ftjax.tuned import Tuned

LONGEST = 512  # tokens that a masked model reads of a text
BUCKETS, BATCH = 4, 32
BEGINS = ("Ġ", "▁")  # a word's first token, of byte-level BPE and of SentencePiece


def classify(workdir: str, split: Split) -> list[dict[str, float]]:
    """Label → probability, of each row, by a run's best checkpoint."""

    def ask() -> list[dict[str, float]]:
        predictor = open_predictor(located(workdir))
        prepared, dropped = rewritten(split, predictor.run.config.data)
        if not len(prepared.rows):
            prepared, dropped = split, {}
        outputs, examples = predictor.outputs(prepared)
        answers = predictor.run.task.predictions(outputs, examples, prepared, predictor.names)
        if not isinstance(answers[0].get("probabilities"), Mapping):
            raise UserError(f"workdir: {workdir} is of a task without probabilities of labels")
        probabilities = iter(row["probabilities"] for row in answers)
        none = dict.fromkeys(answers[0]["probabilities"], 0.0)  # of a text of which nothing is left
        rows = range(len(split.rows))
        return [none if row in dropped else next(probabilities) for row in rows]

    return _cached(["classify", _run_identity(workdir), split.column("text")], ask)


def generate(model: str, prompts: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """What a language model, or that of a work folder, says to each prompt.

    Args:
        model: a work folder, or what `model.path` takes.
        prompts: the texts.
        settings: names and values of `ftjax.generation.settings.Settings`, and "batch_size".
    """
    trained = (located(model) / "checkpoints").is_dir()

    def ask() -> list[str]:
        opened = open_writer(located(model)) if trained else open_model(model, _one_device())
        changes = {name: value for name, value in settings.items() if name != "batch_size"}
        generator = make_generator(*opened, changes=changes)
        return [texts[0] for texts in in_batches(generator, prompts, settings["batch_size"])]

    source = _run_identity(model) if trained else identity(locate(model))
    return _cached(["generate", source, list(prompts), dict(settings)], ask)


def fill(model: str, texts: Sequence[Sequence[str]], count: int) -> list[list[dict[str, float]]]:
    """The most probable whole words, and their probabilities among such, between parts of texts.

    Args:
        model: what `model.path` takes, with a head of a masked language model.
        texts: of each its parts; a word is missing between each two.
        count: words for each gap; none where the model does not read so far.
    """

    def ask() -> list[list[dict[str, float]]]:
        mesh = _one_device()
        tuned, params, folder = open_model(model, mesh, head="masked_lm")
        tokenizer = load_tokenizer(folder)
        require(bool(tokenizer.mask_token), f"{model}: its tokenizer has no mask")
        limit = min(tuned.longest or LONGEST, LONGEST)
        mask = tokenizer.mask_token
        masked = [mask.join(part.replace(mask, " ") for part in parts) for parts in texts]
        ids = tokenizer(masked, truncation=True, max_length=limit)["input_ids"]
        masks = [np.flatnonzero(np.array(row) == tokenizer.mask_token_id) for row in ids]
        most = max(1, *map(len, masks))
        padded = np.stack([np.pad(row, (0, most - len(row))) for row in masks])
        words = whole_words(tokenizer)
        top = partial(likely, tuned, np.array(list(words)), count)
        lengths = np.array(list(map(len, ids)))
        examples = Examples(ragged(ids), arrays={"mask_places": padded.astype(np.int32)})
        forward = Forward(mesh, BATCH, top)
        trainable, frozen = tuned.partition.split(params)
        out = forward(trainable, frozen, examples, bucket_layout(lengths, BUCKETS))

        def known(ranked: np.ndarray, number: int, read: int) -> dict[str, float]:
            pairs = ranked[number] if number < read else ()
            return {words[int(token)]: float(p) for p, token in pairs}

        return [
            [known(ranked, i, len(row)) for i in range(len(parts) - 1)]
            for parts, row, ranked in zip(texts, masks, out, strict=True)
        ]

    return _cached(["fill", identity(locate(model)), [list(t) for t in texts], count], ask)


def likely(
    tuned: Tuned, words: np.ndarray, count: int, params: Flat, batch: Mapping[str, jax.Array]
) -> jax.Array:
    """Probabilities among some words, and their tokens, of the first `count` at each mask.

    Args:
        tuned: a model under "masked_lm".
        words: (words,) their tokens.
        count: how many.
        params: flat parameters.
        batch: what the model reads, and "mask_places" (rows, masks).

    Returns:
        (rows, masks, count, 2).
    """
    logits = tuned.apply(params, batch)
    at = jnp.take_along_axis(logits, batch["mask_places"][..., None], 1)[..., words]
    chances, order = jax.lax.top_k(jax.nn.softmax(at.astype(jnp.float32)), min(count, len(words)))
    return jnp.stack([chances, jnp.asarray(words)[order].astype(jnp.float32)], -1)


def whole_words(tokenizer: Any) -> dict[int, str]:
    """Tokens that are a word by themselves, and the word."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    marked = any(token.startswith(BEGINS) for token in tokens)
    special, words = set(tokenizer.all_special_ids), {}
    for number, token in enumerate(tokens):
        begins = token.startswith(BEGINS) if marked else not token.startswith("##")
        word = tokenizer.decode([number]).strip()
        begins = begins or (marked and bool(IS_HAN.match(word)))
        if begins and number not in special and WORD.fullmatch(word):
            words[number] = word
    return words


def _one_device() -> Mesh:
    return make_mesh(1, 1, 1, jax.local_devices()[:1])


def _run_identity(workdir: str) -> str:
    """Of a finished run: what it was, and what came of it."""
    path, digest = located(workdir), hashlib.sha256()
    for name in ("config.json", "labels.json", "result.json"):
        if not (path / name).exists():
            raise UserError(f"{workdir} has no {name}: it is no work folder of a finished run")
        digest.update((path / name).read_bytes())
    return digest.hexdigest()


def _cached(request: list[Any], ask: Callable[[], Any]) -> Any:
    """What `ask` gives, or gave when the same was asked before.

    On several hosts the first one's disk decides for all whether it is asked, and what was said.
    """
    key = hashlib.sha256(json.dumps(["1", *request]).encode()).hexdigest()[:32]
    require_same(f"what data.prepare has a model {request[0]}", [key])
    name = f"{key}.json"
    entry = cache.read("prepared", name)
    text = broadcast("" if entry is None else str(entry, "utf-8"))
    if not text:
        text = broadcast(json.dumps(ask()))
        cache.write("prepared", name, lambda file: file.write(text.encode()))
    return json.loads(text)
