"""Models at hand, of work folders and of pretrained folders: what a notebook works with."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftjax import tasks
from ftjax.config import config as configured
from ftjax.config import in_dots
from ftjax.data.encode import Examples, ragged
from ftjax.data.planning import bucket_layout
from ftjax.errors import UserError, require
from ftjax.evaluation.forward import Forward
from ftjax.evaluation.predict import Predictions, predict_rows
from ftjax.evaluation.predictor import Predictor, open_predictor, prompt_rewriting
from ftjax.formats.folder import load_tokenizer, locate, read_config
from ftjax.formats.sentence_transformers.modules import POOLING
from ftjax.generation.batches import in_batches
from ftjax.generation.load import make_generator
from ftjax.generation.prompts import Messages
from ftjax.loss import Loss
from ftjax.partition import Partition
from ftjax.paths import Flat
from ftjax.remote import is_remote, located, path_text
from ftjax.setup.labels import finished_outputs
from ftjax.setup.model import place_model
from ftjax.tasks.base import Task
from ftjax.workdir import configuration

TASKS = {  # how architectures of config.json end → the task that such a head is of
    "ForSequenceClassification": "classification",
    "ForTokenClassification": "token_classification",
    "ForQuestionAnswering": "span_qa",
    "ForMultipleChoice": "multiple_choice",
    "ForMaskedLM": "masked_lm",
    "ForPreTraining": "masked_lm",
    "ForCausalLM": "causal_lm",
    "LMHeadModel": "causal_lm",
    "ForConditionalGeneration": "seq2seq",
    "MTModel": "seq2seq",
}
BUCKETS = 4  # shapes that texts are embedded in
RESERVED = 2  # positions that some families count and do not use


@dataclass(frozen=True)
class Model:
    """A model under a method, for a task, in place on the devices.

    Attributes:
        predictor: the model, its task, and the names of its labels.
    """

    predictor: Predictor

    @property
    def params(self) -> Flat:
        """All parameters, "a/b/kernel" → array, the method's included."""
        return self.predictor.params

    @property
    def partition(self) -> Partition:
        """Which of them train, and in which group."""
        return self.predictor.run.tuned.partition

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the task's labels; empty where it has none."""
        return self.predictor.names

    def apply(self, params: Flat, batch: Mapping[str, jax.Array], key: Any = None) -> jax.Array:
        """The model's outputs on a batch, a pure function: see `Tuned.apply`.

        Args:
            params: flat, as `params`.
            batch: `input_ids` (rows, length), `attention_mask` and what else the model reads.
            key: turns dropout on.
        """
        return self.predictor.run.tuned.apply(params, batch, key)

    def loss(self, params: Flat, batch: Mapping[str, jax.Array], key: Any = None) -> Loss:
        """Σ of losses and Σ of weights of a batch with the task's targets, a pure function.

        Args:
            params: flat, as `params`.
            batch: as of `apply`, with "weights" (rows,) and what the task's loss reads, as
                "labels".
            key: turns dropout on.
        """
        apply = partial(self.predictor.run.tuned.apply, params, key=key)
        return self.predictor.run.task.loss(apply, batch, key is not None)

    def merged(self) -> Flat:
        """Parameters of the plain model that computes the same.

        Raises:
            UserError: the method cannot be merged.
        """
        return self.predictor.run.tuned.merged(self.params)

    def predict(self, rows: Any) -> Predictions:
        """Rows with what the model says of each: see `ftjax.predict`.

        Args:
            rows: a file, mappings, a pandas.DataFrame or a datasets.Dataset.
        """
        return predict_rows(self.predictor, rows)

    def generate(
        self,
        prompts: str | Sequence[str | Messages],
        *,
        batch_size: int = 8,
        stop: Sequence[str] = (),
        weights: str = "float32",
        **settings: Any,
    ) -> Any:
        """Texts that go on from prompts, or answer them.

        Args:
            prompts: texts, or chats (lists of {"role", "content"}); or one text.
            batch_size: prompts at once.
            stop: texts that end a text.
            weights: "bfloat16" or "int8": what weights are held in meanwhile, for speed.
            **settings: as `max_new_tokens` and `temperature`, see
                `ftjax.generation.settings.Settings`.

        Returns:
            A text a prompt, or a list where `num_return_sequences` is above 1; of one text, that
            of it.

        Raises:
            UserError: the model does not generate, or a prompt is empty.
        """
        run = self.predictor.run
        if run.tuned.model.head not in ("causal_lm", "seq2seq_lm"):
            raise UserError(f"a model for {run.config.task.name} does not generate")
        place = (run.tuned, self.params, run.folder, run.task)
        rewrite = prompt_rewriting(run) if self.predictor.workdir else None
        every = [prompts] if isinstance(prompts, str) else list(prompts)
        held = {"weights": weights, "prompts": min(batch_size, len(every))}
        generator = make_generator(*place, rewrite, changes=settings, stop=stop, **held)
        texts = in_batches(generator, every, batch_size)
        alone = [samples[0] for samples in texts]
        texts = alone if generator.settings.num_return_sequences == 1 else texts
        return texts[0] if isinstance(prompts, str) else texts

    def embed(self, texts: Sequence[str] | str) -> np.ndarray:
        """A vector a text, float32 (texts, features).

        Args:
            texts: a list of them, or one, whose vector is given alone.

        Of sentence encoders the embeddings, of length 1; of others what their head reads.

        Raises:
            UserError: the head reads a vector of every token, or there is no text.
        """
        if isinstance(texts, str):
            return self.embed([texts])[0]
        require(isinstance(texts, Iterable), f"texts must be a list, not {type(texts).__name__}")
        run, texts = self.predictor.run, list(texts)
        require(len(texts) > 0, "there is no text to embed")
        for number, text in enumerate(texts, 1):
            require(isinstance(text, str), f"text {number} is a {type(text).__name__}")
        head = run.tuned.model.head
        require(head in ("embedding", "classification"), "load it with task='contrastive' to embed")
        apply = partial(run.tuned.apply, features_only=head == "classification")

        def vectors(params: Flat, batch: Mapping[str, jax.Array]) -> jax.Array:
            features = apply(params, batch).astype(jnp.float32)
            if head == "classification":
                return features
            return features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-9)

        tokenizer, longest = load_tokenizer(run.folder), run.config.data.max_length
        ids = tokenizer(texts, truncation=True, max_length=longest)["input_ids"]
        layout = bucket_layout(np.array(list(map(len, ids))), BUCKETS)
        forward = Forward(run.mesh, run.config.train.eval_batch_size, vectors)
        return forward(run.trainable, run.frozen, Examples(ragged(ids)), layout)


def load(
    source: str | os.PathLike[str],
    *,
    adapter: str | os.PathLike[str] | None = None,
    task: str | None = None,
    labels: Sequence[str] = (),
    step: int | None = None,
    **keys: Any,
) -> Model:
    """A model of a work folder, or a pretrained one.

    Args:
        source: a work folder; or a model's folder, a .gguf file, a nickname or a hub id.
        adapter: a folder of an adapter, over a pretrained model.
        task: that a pretrained model is for; None for what its head is of, or "contrastive" where
            it has none.
        labels: names of the outputs of a new head, which is drawn by `seed`.
        step: of a work folder's checkpoint; None for the best.
        **keys: dotted names, as `**{"model.dtype": "bfloat16"}`: of a work folder what readers may
            change, of a pretrained model any, with `method.name` among them.

    Raises:
        UserError: there is no such model, or a key is wrong.
    """
    folder, names = located(source), _different(labels)
    if (is_remote(folder) or folder.is_dir()) and (folder / "checkpoints").exists():
        wrong = [
            name
            for name, value in {"adapter": adapter, "task": task, "labels": labels}.items()
            if value
        ]
        require(not wrong, f"{wrong} are of pretrained models, and {source} is a work folder")
        return Model(open_predictor(folder, configuration.read_config(folder, in_dots(keys)), step))
    require(step is None, f"step={step}: {source} is no work folder")
    return Model(_pretrained(os.fspath(source), adapter, task, names, in_dots(keys)))


def _pretrained(
    source: str,
    adapter: str | os.PathLike[str] | None,
    task: str | None,
    labels: tuple[str, ...],
    keys: Mapping[str, Any],
) -> Predictor:
    """A pretrained model for a task, under "full" unless a method is named."""
    folder = locate(source)
    changes = {"model.adapter": path_text(adapter or ""), **keys}
    config = configured(model=source, task=task or _task_of(folder), **changes)
    if "data.max_length" not in keys:
        positions = read_config(folder).get("max_position_embeddings") or config.data.max_length
        config.data.max_length = min(config.data.max_length, positions - RESERVED)
    of_task = tasks.create(config.task)
    names = labels or finished_outputs(config, of_task, folder)
    if not names and type(of_task).label_names is not Task.label_names:
        raise UserError(f"{source} has no head for {config.task.name}: name its labels=(...)")
    return Predictor(place_model(config, names), names, 0, None)


def _different(labels: Iterable[str]) -> tuple[str, ...]:
    """Names of labels; raises UserError for a text, which is a sequence too, or one name twice."""
    is_list = isinstance(labels, Iterable) and not isinstance(labels, str)
    names = tuple(map(str, labels)) if is_list else ()
    require(is_list and len({*names}) == len(names), f"{labels=} must be a list of different names")
    return names


def _task_of(folder: Path) -> str:
    """The task that a pretrained model's head is of."""
    if (folder / POOLING).exists():
        return "contrastive"
    architectures = read_config(folder).get("architectures") or ()
    for end, task in TASKS.items():
        if any(name.endswith(end) for name in architectures):
            return task
    return "contrastive"


def generate(
    source: str | os.PathLike[str],
    prompts: str | Sequence[str | Messages],
    *,
    adapter: str | os.PathLike[str] | None = None,
    batch_size: int = 8,
    stop: Sequence[str] = (),
    step: int | None = None,
    **settings: Any,
) -> Any:
    """Texts that a language model writes: `load(source).generate(prompts)`.

    Args:
        source: a work folder, or what `load` takes.
        prompts: see `Model.generate`, as the rest.
        adapter: see `load`.
        batch_size: prompts at once.
        stop: texts that end a text.
        step: see `load`.
        **settings: of the generation; dotted names are keys of `load`.
    """
    keys = {name: value for name, value in settings.items() if "." in name}
    settings = {name: value for name, value in settings.items() if "." not in name}
    model = load(source, adapter=adapter, step=step, **keys)
    return model.generate(prompts, batch_size=batch_size, stop=stop, **settings)
