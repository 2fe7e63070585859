"""The training that a configuration of ftjax's asks for, by transformers, peft and torch.

python scripts/tasks_peer.py --config configs/sst2.py:lora --output RESULT.json [--config.KEY=VALUE]

Shares the configuration with `ftjax train`, and nothing else: the same rows, epochs, batch size,
learning rates, dropout and choice of the best epoch, in float32. Encoding, heads, losses and
metrics are written here anew, so that none of ftjax's is trusted. Needs the `test` extras.
"""

import argparse
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from scipy import stats
from seqeval import metrics as sq
from sklearn import metrics as sk
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoTokenizer,
    BertForTokenClassification,
    BertModel,
    get_linear_schedule_with_warmup,
)

from ftjax.config import load_config
from ftjax.config.saved import to_json
from ftjax.formats.folder import locate

IGNORED = -100  # of tags, where a token is not the first of its word
Rows = list[dict[str, Any]]
Batch = dict[str, torch.Tensor]
Scores = dict[str, float]


class Pooled(torch.nn.Module):
    """BERT under one linear layer: of the mean, or of both entities' means and [CLS]."""

    def __init__(self, folder: Path, outputs: int, entities: bool) -> None:
        super().__init__()
        self.encoder = BertModel.from_pretrained(folder, add_pooling_layer=False)
        config, self.entities = self.encoder.config, entities
        self.dropout = torch.nn.Dropout(config.hidden_dropout_prob)
        self.classifier = torch.nn.Linear(config.hidden_size * (3 if entities else 1), outputs)
        torch.nn.init.normal_(self.classifier.weight, std=config.initializer_range)
        torch.nn.init.zeros_(self.classifier.bias)

    def forward(self, which: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(**inputs).last_hidden_state

        def mean(mask: torch.Tensor) -> torch.Tensor:
            return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)

        if self.entities:
            pooled = torch.cat([mean(which == 1), mean(which == 2), hidden[:, 0]], -1)
        else:
            pooled = mean(inputs["attention_mask"])
        return self.classifier(self.dropout(pooled))


class Tagger(BertForTokenClassification):
    """Logits of tags for each token, and after them those of intents."""

    def forward(self, which: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(**inputs).logits


def read(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def oversampled(rows: Rows) -> Rows:
    """Rows of rare labels repeated, until all labels have as many."""
    groups = {label: [row for row in rows if row["label"] == label] for label in labels_of(rows)}
    most = max(map(len, groups.values()))
    return [group[i % len(group)] for group in groups.values() for i in range(most)]


def labels_of(rows: Rows) -> list:
    return sorted({row["label"] for row in rows if "label" in row})


def marked(text: str) -> tuple[list[str], list[int]]:
    """Words with @ and # around the entities, and of which entity each is (0: of none)."""
    words, which, now = [], [], 0
    for piece in re.split(r"(</?e[12]>)", text):
        tag = re.fullmatch(r"<(/?)e([12])>", piece)
        new = ["@#"[int(tag[2]) - 1]] if tag else piece.split()
        words += new
        which += [0 if tag else now] * len(new)
        if tag:
            now = 0 if tag[1] else int(tag[2])
    return words, which


def encoded(rows: Rows, kind: str, tokenizer: Any, longest: int, tags: list[str]) -> list[Batch]:
    """Tensors of each row: input_ids, token_type_ids, which (entity or number of the tag)."""
    options, examples = {"truncation": True, "max_length": longest}, []
    for row in rows:
        which = None
        if kind == "tokens":
            found = tokenizer(row["tokens"], is_split_into_words=True, **options)
            words, before = found.word_ids(), None
            which = []
            for word in words:
                first = word is not None and word != before
                which.append(tags.index(row["tags"][word]) if first else IGNORED)
                before = word
        elif kind == "entities":
            words, of_word = marked(row["text"])
            found = tokenizer(words, is_split_into_words=True, **options)
            which = [0 if word is None else of_word[word] for word in found.word_ids()]
        else:
            texts = [row[name] for name in ("text", "text_pair") if name in row]
            found = tokenizer(*texts, **options)
        found = {key: found[key] for key in ("input_ids", "token_type_ids")}
        found["which"] = which or [0] * len(found["input_ids"])
        examples.append({key: torch.tensor(value) for key, value in found.items()})
    return examples


def collated(examples: list[Batch]) -> Batch:
    padding = {"input_ids": 0, "token_type_ids": 0, "which": IGNORED}
    batch = {
        name: pad_sequence([each[name] for each in examples], True, value)
        for name, value in padding.items()
    }
    lengths = torch.tensor([len(each["input_ids"]) for each in examples])
    real = torch.arange(int(lengths.max())) < lengths[:, None]
    return {**batch, "attention_mask": real.long()}


def intents(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Means over all tokens of a row."""
    mask = batch["attention_mask"][..., None]
    return (logits * mask).sum(1) / mask.sum(1)


def loss_of(tags: int, squared: bool, weights: torch.Tensor | None) -> Callable[..., torch.Tensor]:
    """The mean over a batch, of logits, batch and answers.

    Args:
        tags: how many outputs are of tags; 0 where they are not of tokens.
        squared: the error of numbers.
        weights: of classes.
    """

    def of_tags(logits: torch.Tensor, batch: Batch, answers: torch.Tensor) -> torch.Tensor:
        each = logits[..., :tags].transpose(1, 2)
        if logits.shape[-1] == tags:
            return cross_entropy(each, batch["which"], ignore_index=IGNORED)
        losses = cross_entropy(each, batch["which"], ignore_index=IGNORED, reduction="none")
        words = (batch["which"] != IGNORED).sum(1).clamp(min=1)
        found = intents(logits[..., tags:], batch)
        return ((losses.sum(1) / words) + cross_entropy(found, answers, reduction="none")).mean()

    def of_texts(logits: torch.Tensor, batch: Batch, answers: torch.Tensor) -> torch.Tensor:
        if squared:
            return ((logits[:, 0] - answers) ** 2).mean()
        return cross_entropy(logits, answers, weight=weights)

    return of_tags if tags else of_texts


def of_relations(truth: np.ndarray, guess: np.ndarray, names: list[str]) -> float:
    """SemEval's official F1: the mean over relations, directions together; but for Other."""
    kinds = [name.partition("(")[0] for name in names]
    scores = []
    for kind in sorted(set(kinds) - {"Other"}):
        true, found = ([kinds[i] == kind for i in side] for side in (truth, guess))
        right = sum(a and x == y for a, x, y in zip(true, truth, guess, strict=True))
        precision, recall = right / max(sum(found), 1), right / max(sum(true), 1)
        scores.append(2 * precision * recall / max(precision + recall, 1e-12))
    return float(np.mean(scores))


def of_labels(logits: np.ndarray, truth: np.ndarray, names: list[str]) -> Scores:
    guess = logits.argmax(-1)
    return {
        "accuracy": sk.accuracy_score(truth, guess),
        "f1": sk.f1_score(truth, guess, average="macro"),
        "matthews": sk.matthews_corrcoef(truth, guess),
        "f1_relations": of_relations(truth, guess, names),
    }


def of_words(
    logits: list[torch.Tensor],
    examples: list[Batch],
    rows: Rows,
    tags: list[str],
    answers: torch.Tensor | None,
) -> Scores:
    """Entities by seqeval; words that were cut off are O. With intents also whole rows."""
    truth, guess = [row["tags"] for row in rows], []
    for row, found, example in zip(rows, logits, examples, strict=True):
        first = example["which"] != IGNORED
        best = found[: len(first), : len(tags)].argmax(-1)[first].tolist()
        guess.append(([tags[i] for i in best] + ["O"] * len(row["tags"]))[: len(row["tags"])])
    scores = {"f1": float(sq.f1_score(truth, guess, zero_division=0))}
    if answers is not None:
        means = [
            found[: len(each["which"]), len(tags) :].mean(0)
            for found, each in zip(logits, examples, strict=True)
        ]
        right = (torch.stack(means).argmax(-1) == answers).numpy()
        same = np.array([a == b for a, b in zip(truth, guess, strict=True)])
        scores |= {"intent_accuracy": float(right.mean()), "exact": float((right & same).mean())}
    return scores


class Peer:
    """A configuration of ftjax's, and what torch makes of it."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config, folder = config, locate(config["model"]["path"])
        name, data = config["task"]["name"], Path(config["data"]["path"])
        self.kind = {"token_classification": "tokens", "relation": "entities"}.get(name, "text")
        self.squared = name == "regression"
        self.rows = {split: read(data / f"{split}.jsonl") for split in ("train", "validation")}
        if (data / "test.jsonl").exists():
            self.rows["test"] = read(data / "test.jsonl")
        if "oversample" in config["data"]["prepare"]:
            self.rows["train"] = oversampled(self.rows["train"])
        train = self.rows["train"]
        self.tags = sorted({tag for row in train for tag in row.get("tags", ())})
        self.names = ["value"] if self.squared else labels_of(train)
        tokenizer, longest = AutoTokenizer.from_pretrained(folder), config["data"]["max_length"]
        self.examples = {
            split: encoded(rows, self.kind, tokenizer, longest, self.tags)
            for split, rows in self.rows.items()
        }
        self.answers = {split: self._answers(rows) for split, rows in self.rows.items()}
        weights = None
        if config["task"].get("class_weights") == "balanced":
            counts = Counter(self.answers["train"].tolist())
            share = [len(train) / (len(counts) * counts[i]) for i in range(len(counts))]
            weights = torch.tensor(share)
        self.loss = loss_of(len(self.tags), self.squared, weights)
        torch.manual_seed(config["seed"])
        self.model = self._model(folder)

    def _answers(self, rows: Rows) -> torch.Tensor | None:
        if self.squared:
            return torch.tensor([float(row["label"]) for row in rows])
        if not self.names:
            return None
        return torch.tensor([self.names.index(row["label"]) for row in rows])

    def _model(self, folder: Path) -> torch.nn.Module:
        method, count = self.config["method"], len(self.tags) + len(self.names)
        if self.kind == "tokens":
            model = Tagger.from_pretrained(folder, num_labels=count)
        else:
            model = Pooled(folder, count, self.kind == "entities")
        if self.squared:  # as ours: from the best constant answer
            torch.nn.init.constant_(model.classifier.bias, self.answers["train"].mean())
        if method["name"] == "full":
            return model
        settings = LoraConfig(
            r=method["rank"],
            lora_alpha=method["alpha"],
            lora_dropout=method["dropout"],
            target_modules=["query", "value"],
            modules_to_save=["classifier"],
        )
        return get_peft_model(model, settings)

    def train(self) -> dict[str, Any]:
        """Metrics of the epoch that is best by validation."""
        settings, optimizer = self.config["train"], self.config["optimizer"]
        size, examples, answers = settings["batch_size"], self.examples["train"], None
        trained = [p for p in self.model.parameters() if p.requires_grad]
        adam = torch.optim.AdamW(
            trained,
            lr=optimizer["learning_rate"],
            betas=(optimizer["beta1"], optimizer["beta2"]),
            eps=optimizer["epsilon"],
            weight_decay=optimizer["weight_decay"],
        )
        steps = settings["epochs"] * math.ceil(len(examples) / size)
        warmup = math.ceil(optimizer["warmup"] * steps)
        schedule = get_linear_schedule_with_warmup(adam, warmup, steps)
        best, kept = None, {}
        for epoch in range(settings["epochs"]):
            self.model.train()
            for part in torch.randperm(len(examples)).split(size):
                batch = collated([examples[i] for i in part])
                if self.answers["train"] is not None:
                    answers = self.answers["train"][part]
                self.loss(self.model(**batch), batch, answers).backward()
                torch.nn.utils.clip_grad_norm_(trained, optimizer["clip_norm"])
                adam.step()
                schedule.step()
                adam.zero_grad()
            found = self.score("validation")
            print(f"epoch {epoch + 1}: {found}", flush=True)
            value = found[self.metric]
            if best is None or value > best["validation"][self.metric]:
                best = {"epoch": epoch + 1, "validation": found}
                kept = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(kept)
        metrics = {split: self.score(split) for split in self.rows if split != "train"}
        trainable = sum(p.numel() for p in trained)
        return {
            "best_epoch": best["epoch"],
            "trainable_params": trainable,
            "metrics": metrics,
        }

    @property
    def metric(self) -> str:
        """Of validation, that chooses the epoch."""
        named = self.config["train"]["best_metric"]
        usual = {"tokens": "f1", "entities": "f1_relations"}.get(self.kind, "accuracy")
        return named if named != "auto" else "pearson" if self.squared else usual

    @torch.no_grad()
    def score(self, split: str) -> Scores:
        self.model.eval()
        examples, answers, found = self.examples[split], self.answers[split], {}
        order = sorted(range(len(examples)), key=lambda i: len(examples[i]["input_ids"]))
        for start in range(0, len(order), 64):
            part = order[start : start + 64]
            logits = self.model(**collated([examples[i] for i in part]))
            found.update(zip(part, logits, strict=True))
        logits = [found[i] for i in range(len(examples))]
        if self.kind == "tokens":
            return of_words(logits, examples, self.rows[split], self.tags, answers)
        outputs = torch.stack(logits).double().numpy()
        if self.squared:
            return {"pearson": float(stats.pearsonr(outputs[:, 0], answers.double().numpy())[0])}
        names = [str(name) for name in self.names]
        return {k: float(v) for k, v in of_labels(outputs, answers.numpy(), names).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments, overrides = parser.parse_known_args()
    found = Peer(json.loads(to_json(load_config(arguments.config, overrides)))).train()
    part = arguments.output.with_suffix(".part")
    part.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    part.rename(arguments.output)


if __name__ == "__main__":
    main()
