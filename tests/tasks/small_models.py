"""Rows as splits and examples, tokenizers trained here, and tasks on transformers' small models."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers

from ftjax import methods, pretrained, tuned
from ftjax.build import build_tuned
from ftjax.data.draws import Draws
from ftjax.data.encode import Examples, encode
from ftjax.data.loading import Loader, Vary
from ftjax.data.packed_layout import packed_layout
from ftjax.data.planning import bucket_layout, paired_layout
from ftjax.data.readers.rows import Reader
from ftjax.data.sources import LazySplit, Split, read_split
from ftjax.evaluation.forward import Forward
from ftjax.formats.folder import read_config
from ftjax.formats.hf import mapping
from ftjax.parallel.mesh import make_mesh
from tests.compiler import OPTIONS
from tests.conftest import write_tokenizer
from tests.models.reference import Reference


def split_of(task: Any, rows: Iterable[dict], schema: Any = None) -> Split:
    """Rows, checked as those of a file."""
    columns = {name: name for name in task.schema.fields}
    opened = LazySplit("rows.jsonl", Reader(lambda: enumerate(rows, 1)), columns)
    return read_split([opened], schema or task.schema, skip=False)


def examples_of(
    task: Any, rows: Iterable[dict], folder: Path, length: int = 32
) -> tuple[Split, tuple[str, ...], Examples]:
    """Rows with their labels' names, and examples with targets."""
    split = split_of(task, rows)
    names = task.label_names(split)
    return split, names, task.targets(encode(split, task, folder, length), split, names)


def varied(examples: Examples, vary: Vary, seed: int = 0, epoch: int = 0) -> Examples:
    """The examples of an epoch, those of a batch being made alone: by default as evaluation has
    them."""
    return vary(examples, Draws.of((seed, epoch, 1), len(examples)))


def batches(examples: Examples, size: int = 8, packed: bool = False, vary: Any = None) -> list:
    """Batches of an epoch."""
    return [batch for _, batch in loader(examples, size, packed, vary)]


def loader(examples: Examples, size: int, packed: bool, vary: Any = None) -> Loader:
    """Of an epoch in the examples' order."""
    shown = examples if vary is None else vary(examples, Draws.of((0,), len(examples)))
    return Loader(examples, size, layout(shown, size, packed), None, vary=vary)


def layout(examples: Examples, size: int, packed: bool) -> Any:
    if packed:
        return packed_layout(examples.lengths, size)
    found = bucket_layout(examples.lengths, 1)
    if examples.decoder is None:
        return found
    return paired_layout(found, examples.lengths, examples.decoder.lengths)


@dataclass(frozen=True)
class SmallModel:
    """A task on a small random model of transformers, and that model."""

    task: Any
    tuned: tuned.Tuned
    params: dict[str, jax.Array]
    theirs: transformers.PreTrainedModel

    @classmethod
    def of(
        cls, task: Any, case: str, head: str, folder: Path, labels: int = 3, **method: Any
    ) -> "SmallModel":
        """The model in `folder`, where a tokenizer may be already."""
        reference = Reference.make(case, head, folder)
        asked = {"head": head, "labels": labels}
        model = build_tuned(
            read_config(folder), methods.create(method or {"name": "full"}), {}, asked
        )
        mesh = make_mesh(devices=jax.devices()[:1])
        params, absent = pretrained.load(folder, model, mesh, jax.random.key(0))
        assert not absent
        return cls(task, model, params, reference.model)

    def sums(self, several: Iterable[dict]) -> float:
        """The mean loss over batches."""
        run = jax.jit(self._of, compiler_options=OPTIONS)
        each = [run(self.params, batch) for batch in several]
        return float(sum(loss.total for loss in each) / sum(loss.weight for loss in each))

    def _of(self, params: dict, batch: dict, train: bool = False) -> Any:
        return self.task.loss(partial(self.tuned.apply, params), batch, train)

    def gradients(self, batch: dict, train: bool = False) -> tuple[float, dict[str, np.ndarray]]:
        """The mean loss of a batch, or that of training, and its gradients by transformers' names."""

        def mean(params: dict) -> jax.Array:
            loss = self._of(params, batch, train)
            return loss.total / loss.weight

        loss, found = jax.jit(jax.value_and_grad(mean), compiler_options=OPTIONS)(self.params)
        found = jax.tree.map(np.asarray, found)
        return float(loss), mapping.to_tensors(found, self.tuned.names, prefix=True)

    def outputs(self, examples: Examples, packed: bool = False, size: int = 8, vary: Any = None):
        """What is scored, in the order of examples."""
        shown = examples if vary is None else vary(examples, Draws.of((0,), len(examples)))

        def apply(params: dict, batch: dict) -> Any:
            return self.task.outputs(partial(self.tuned.apply, params), batch)

        forward = Forward(make_mesh(devices=jax.devices()[:1]), size, apply, vary)
        return forward(self.params, {}, examples, layout(shown, size, packed))

    def with_task(self, task: Any) -> "SmallModel":
        return replace(self, task=task)


def equals(found: dict[str, np.ndarray], model: torch.nn.Module, limit: float = 1e-4) -> None:
    """Whether gradients equal those of torch after `backward`, relative to each one's largest or to
    a hundredth of the largest of all."""
    wanted = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    assert set(wanted) <= set(found)
    largest = max(np.abs(grad).max() for grad in wanted.values())
    for name, grad in wanted.items():
        error = np.abs(found[name] - grad).max() / max(np.abs(grad).max(), 1e-2 * largest)
        assert error < limit, (name, error)


def most_places(value: Any) -> int:
    """Of the numbers within what is predicted, the most digits that one has after its point."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return max(map(most_places, inner), default=0)
    return -Decimal(repr(value)).as_tuple().exponent if isinstance(value, float) else 0


def tensors(batch: dict, *names: str) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(np.asarray(batch[name])).long() for name in names if name in batch}


SPECIAL = {"pad": "<pad>", "unk": "<unk>", "bos": "<s>", "eos": "</s>", "mask": "<mask>"}


def write_trained(folder: Path, kind: str, texts: Sequence[str], more: Sequence[str] = ()) -> Path:
    """A folder with a tokenizer trained on texts: "bpe", of bytes, or "unigram", as of T5."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = [*SPECIAL.values(), *more]
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=300 + len(special),
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    tokenizer.train_from_iterator(texts, trainer)
    if kind == "unigram":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>",
            pair="$A </s> $B </s>",
            special_tokens=[("</s>", tokenizer.token_to_id("</s>"))],
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {f"{name}_token": token for name, token in SPECIAL.items()}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_words(folder: Path, **special: str) -> Path:
    """A folder with the tests' WordPiece tokenizer, and more special tokens, as eos="[SEP]"."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    file = folder / "tokenizer_config.json"
    more = {f"{name}_token": token for name, token in special.items()}
    file.write_text(json.dumps({**json.loads(file.read_text()), **more}))
    return folder
