"""Small random models of transformers, and what goes into and comes out of both sides."""

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers

from ftjax.models import FAMILIES, configure
from ftjax.models.heads import Head
from ftjax.models.layers import Options
from tests.models.cases import CASES

torch.set_num_threads(1)
LABELS, ROWS, CHOICES, LENGTH, TARGET = 3, 4, 2, 12, 9
SHARD = 30_000  # bytes: several files a model
PAIRS = ("prediction_logits", "seq_relationship_logits", "sop_logits", "start_logits", "end_logits")
# What models with a head for choices do not flatten as their other inputs.
UNFLATTENED = {"distilbert": "position_ids", "xlnet": "perm_mask"}
Batch = dict[str, np.ndarray]


def heads_of(config: transformers.PretrainedConfig) -> dict[str, Head]:
    """The heads that we have of a configuration's family."""
    hf = json.loads(config.to_json_string())
    return dict(configure(hf, Options()).heads)


def registered() -> list[tuple[str, str]]:
    """Every case with every head of its family."""
    return [(case, head) for case, make in CASES.items() for head in heads_of(make())]


NO_ROW, EVERY_OTHER, EVERY = slice(0), slice(1, None, 2), slice(None)


def padded(random: np.random.Generator, rows: int, length: int, pad: int, left: slice) -> tuple:
    """Token ids and mask (rows, length), padded on the right; the rows `left` on the left."""
    sizes = random.integers(5, length + 1, (rows, 1))
    sizes[0] = length
    place = np.arange(length) * np.ones((rows, 1), int)
    place[left] = place[left, ::-1]
    mask = (place < sizes).astype(np.int32)
    return np.where(mask, random.integers(5, 64, mask.shape), pad), mask


@dataclass(frozen=True)
class Reference:
    """A model of transformers with a head.

    Attributes:
        head: our name of it.
        model: in evaluation mode.
    """

    head: str
    model: transformers.PreTrainedModel

    @classmethod
    def make(cls, case: str, head: str, folder: Path) -> "Reference":
        """A random model, saved in a folder as several files."""
        config = CASES[case]()
        architecture = heads_of(config)[head].architecture
        config.num_labels = 2 if head in ("span", "pretraining") else LABELS
        torch.manual_seed(0)
        model = getattr(transformers, architecture)(config).eval()
        stored = model.state_dict(keep_vars=True)
        with torch.no_grad():
            for tensor in {id(tensor): tensor for tensor in stored.values()}.values():
                if tensor.squeeze().ndim == 1 and tensor.is_floating_point():
                    tensor += 0.1 * torch.randn_like(tensor)  # biases and norms, not trivial
        model.save_pretrained(folder, max_shard_size=SHARD)
        return cls(head, model)

    def inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        """A batch as the model takes it."""
        tensors = {name: torch.tensor(array) for name, array in batch.items()}
        if "position_ids" in batch and "roberta" in self.model.config.model_type:
            tensors["position_ids"] += self.model.config.pad_token_id + 1  # ours count from 0
        left = UNFLATTENED.get(self.model.config.model_type)
        if left in tensors and self.head == "choice":
            tensors[left] = tensors[left].flatten(0, 1)
        return tensors

    def outputs(self, batch: Batch) -> list[torch.Tensor]:
        """What the model says of a batch, in our order."""
        out = self.model(**self.inputs(batch))
        parts = [out[name] for name in PAIRS if name in out]
        if self.head == "span":
            return [torch.stack(parts, -1)]
        return parts or [out.logits]

    def layouts(self) -> list[Batch]:
        """Batches that together use all inputs of the model: at most two sets of inputs."""
        config, random = self.model.config, np.random.default_rng(1)
        accepted = inspect.signature(self.model.forward).parameters
        kind = FAMILIES[config.model_type][1]
        if kind == "encoder-decoder":
            return self._sequences(random)
        left = EVERY_OTHER if kind == "decoder" else NO_ROW
        if config.model_type == "xlnet":  # its classifier reads the last position
            left = EVERY
        ids, mask = padded(random, ROWS * CHOICES, LENGTH, config.pad_token_id, left)
        plain = {"input_ids": ids, "attention_mask": mask}
        layouts = [dict(plain)]
        if "token_type_ids" in accepted and getattr(config, "type_vocab_size", 2) > 1:
            layouts[0]["token_type_ids"] = random.integers(0, 2, ids.shape) * mask
        if "position_ids" in accepted:  # of the real tokens, and a step further each row
            places = np.maximum(mask.cumsum(1) - 1, 0) + np.arange(len(ids))[:, None]
            layouts.append({**plain, "position_ids": places})
        if "perm_mask" in accepted:
            hidden = random.integers(0, 2, (*ids.shape, LENGTH)).astype(np.float32)
            layouts.append({**plain, "perm_mask": hidden})
        if self.head == "choice":
            shape = (ROWS, CHOICES, LENGTH)
            return [
                {name: array.reshape(*shape, *array.shape[2:]) for name, array in layout.items()}
                for layout in layouts
            ]
        return layouts

    def _sequences(self, random: np.random.Generator) -> list[Batch]:
        config = self.model.config
        ids, mask = padded(random, ROWS, LENGTH, config.pad_token_id, NO_ROW)
        whole = random.integers(5, 64, ids.shape)
        for rows, sizes in ((ids, mask.sum(1)), (whole, LENGTH)):
            # mBART's texts end with their language after the end of the text.
            ends = sizes - 1 - (config.model_type == "mbart")
            rows[np.arange(ROWS), ends] = config.eos_token_id
        layouts = [{"input_ids": ids, "attention_mask": mask}, {"input_ids": whole}]
        if self.head == "seq2seq_lm":
            target, real = padded(random, ROWS, TARGET, config.pad_token_id, EVERY_OTHER)
            for batch in layouts:
                batch["decoder_input_ids"] = target
            layouts[0]["decoder_attention_mask"] = real
        return layouts


def real(batch: Batch, out: np.ndarray) -> np.ndarray:
    """Where an output is compared: at real tokens, if it is one a token."""
    side = "decoder_" * ("decoder_input_ids" in batch)
    shape = batch[f"{side}input_ids"].shape
    if out.ndim < 3 or out.shape[:2] != shape:
        return np.ones(out.shape[:1], bool)
    return batch.get(f"{side}attention_mask", np.ones(shape)) > 0


def difference(batch: Batch, ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """The largest difference between outputs, relative to the largest of each."""
    errors = []
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        a, b = (np.asarray(x, np.float64)[real(batch, b)] for x in (a, b))
        errors.append(np.abs(a - b).max() / np.abs(b).max())
    return max(errors)
