"""The Hugging Face Trainer's side of scripts/benchmark.py: one run in a process of its own.

Writes tokens/s of the training phase, without its first steps, and validation accuracy. PEFT has no
`houlsby`: it is two bottlenecks a layer by forward hooks, where the `adapters` library has them.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

WARM = 10  # steps that are not counted, in which torch compiles


def rows(file: Path, tokenizer: Any) -> list[dict]:
    encoded = []
    for row in map(json.loads, file.read_text().splitlines()):
        inputs = tokenizer(row["text"], truncation=True, max_length=128)
        encoded.append({**inputs, "labels": int(row["label"])})
    return encoded


class Bottleneck(torch.nn.Module):
    """h + up(relu(down(h))), at first the identity."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.down, self.up = torch.nn.Linear(size, inner), torch.nn.Linear(inner, size)
        torch.nn.init.normal_(self.down.weight, std=1e-2)
        torch.nn.init.zeros_(self.up.weight)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.up(torch.relu(self.down(hidden)))


def tuned(model: torch.nn.Module, method: str) -> torch.nn.Module:
    """The model of which a method's parameters train."""
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    if method == "lora":
        config = LoraConfig(
            task_type="SEQ_CLS", r=8, lora_alpha=8, target_modules=["query", "value"]
        )
        return get_peft_model(model, config)
    if method == "prompt_tuning":
        return get_peft_model(model, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=20))
    trains = {
        "full": lambda name: True,
        "head": lambda name: "pooler" in name or "classifier" in name,
        "bitfit": lambda name: name.endswith("bias") or "classifier" in name,
        "houlsby": lambda name: "LayerNorm" in name or "classifier" in name,
    }[method]
    for name, parameter in model.named_parameters():
        parameter.requires_grad = trains(name)
    if method == "houlsby":
        size = model.config.hidden_size
        for layer in model.bert.encoder.layer:
            for output in (layer.attention.output, layer.output):
                output.bottleneck = Bottleneck(size, size // 16)
                output.dropout.register_forward_hook(
                    lambda module, inputs, hidden, b=output.bottleneck: b(hidden)
                )
    return model


class Collator(DataCollatorWithPadding):
    """Counts tokens, and ends a batch with them."""

    tokens = 0

    def __call__(self, features: list) -> dict:
        batch = super().__call__(features)
        Collator.tokens += int(batch["attention_mask"].sum())
        return batch


class Clock(TrainerCallback):
    """Tokens and seconds from the end of step `WARM` to the end."""

    def on_step_end(self, args: Any, state: Any, *_: object, **__: object) -> None:
        if state.global_step == WARM:
            self.start, self.before = time.perf_counter(), Collator.tokens

    def on_train_end(self, *_: object, **__: object) -> None:
        self.seconds = time.perf_counter() - self.start
        self.tokens = Collator.tokens - self.before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=0, help="0: whole epochs, then accuracy")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--sampling", choices=("random", "group_by_length"), default="random")
    parser.add_argument("--compile", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(arguments.seed)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = BertForSequenceClassification.from_pretrained(arguments.model, num_labels=2)
    train, clock = rows(arguments.data / "train.jsonl", tokenizer), Clock()
    steps = arguments.steps or arguments.epochs * -(-len(train) // 32)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=tuned(model, arguments.method),
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=32,
                per_device_eval_batch_size=64,
                max_steps=steps + (WARM if arguments.steps else 0),
                learning_rate=arguments.rate,
                lr_scheduler_type="linear",
                warmup_steps=int(-(-0.06 * steps // 1)),
                weight_decay=0.0,
                optim="adamw_torch_fused",
                train_sampling_strategy=arguments.sampling,
                use_cpu=True,
                bf16=arguments.dtype == "bfloat16",
                torch_compile=bool(arguments.compile),
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                seed=arguments.seed,
            ),
            train_dataset=train,
            data_collator=Collator(tokenizer),
            callbacks=[clock],
            compute_metrics=lambda p: {
                "accuracy": float((np.argmax(p.predictions, -1) == p.label_ids).mean())
            },
        )
        trainer.train()
        result = {"tokens_per_second": clock.tokens / clock.seconds, "seconds": clock.seconds}
        if not arguments.steps:
            validation = rows(arguments.data / "validation.jsonl", tokenizer)
            result["accuracy"] = trainer.evaluate(validation)["eval_accuracy"]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
