"""Packed tuning of chats beside TRL's SFTTrainer: tokens/s of the training phase, in one run.

    python scripts/benchmark_sft.py --data FOLDER [--steps 12] [--rounds 2] [--dtypes float32]

FOLDER holds train.jsonl with `messages` (self_instruct). Both sides tune SmolLM2-135M by LoRA of
rank 8 on query and value, batches of eight chats, or of TRL two full rows of 1,024 tokens, loss on
answers alone where the side can (TRL's packing on CPUs: `wrapped`, which sees other examples, or
`bfd`, which needs kernels that CPUs lack). Each run is a process of its own with huge pages. Needs
the `test` extras and trl.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmark import HUGE

ROOT = Path(__file__).parent.parent
LENGTH, ROWS, WARM = 1024, 2, 2  # of packed rows, which hold about eight chats a batch
TYPES = ("float32", "bfloat16")
PEERS = [(dtype, compiled) for dtype in TYPES for compiled in (0, 1)]  # torch.compile


def ours(arguments: argparse.Namespace, folder: Path) -> float:
    """Real tokens/s of ftjax, without its first steps, as the peer's."""
    settings = {
        "data.path": arguments.data,
        "train.steps": arguments.steps + WARM,
        "train.eval_every": 10**9,
        "train.log_every": 1,
        "data.splits.validation": 1,
        "method.rank": 8,
    }
    command = [sys.executable, "-m", "ftjax", "train", "--workdir", str(folder)]
    command += ["--config", f"{ROOT / 'configs' / 'self_instruct.py'}:lora"]
    command += [f"--config.{key}={value}" for key, value in settings.items()]
    subprocess.run(
        command, check=True, capture_output=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    rates = [row["tokens_per_second"] for row in rows if "tokens_per_second" in row]
    return statistics.harmonic_mean(rates[WARM:])  # of batches of as many tokens, nearly


def peer(arguments: argparse.Namespace, folder: Path, dtype: str, compiled: int) -> float:
    """Real tokens/s of the Trainer, without its first steps."""
    command = [sys.executable, __file__, "--data", str(arguments.data), "--model", str(folder)]
    command += ["--steps", str(arguments.steps), "--dtype", dtype, "--compile", str(compiled)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **HUGE}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout.splitlines()[-1])


def train_peer(arguments: argparse.Namespace) -> None:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(os.cpu_count() or 1)
    lines = (arguments.data / "train.jsonl").read_text().splitlines()
    chats = Dataset.from_list([{"messages": json.loads(line)["messages"]} for line in lines])
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, *_: object, **__: object) -> None:
            if state.global_step == WARM:
                self.start = time.perf_counter()

        def on_train_end(self, *_: object, **__: object) -> None:
            self.seconds = time.perf_counter() - self.start

    clock = Clock()
    with tempfile.TemporaryDirectory() as output:
        trainer = SFTTrainer(
            model=model,
            processing_class=AutoTokenizer.from_pretrained(arguments.model),
            args=SFTConfig(
                output_dir=output,
                per_device_train_batch_size=ROWS,
                max_steps=arguments.steps + WARM,
                packing=True,
                packing_strategy="wrapped",
                max_length=LENGTH,
                bf16=arguments.dtype == "bfloat16",
                torch_compile=bool(arguments.compile),
                gradient_checkpointing=False,
                optim="adamw_torch_fused",
                use_cpu=True,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=chats,
            peft_config=LoraConfig(r=8, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
            callbacks=[clock],
        )
        trainer.train()
    # Wrapped rows are full: no token is padding.
    print(arguments.steps * ROWS * LENGTH / clock.seconds)


def folder_of_smollm2(folder: Path) -> Path:
    """SmolLM2 as a folder that transformers reads."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ftjax.formats.folder import locate

    source = locate("smollm2")
    more = {"gguf_file": source.name}
    read = AutoModelForCausalLM.from_pretrained(source.parent, **more)
    del read.config.quantization_config  # what was decoded is to be written
    plain = AutoModelForCausalLM.from_config(read.config)
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source.parent, **more).save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--model", type=Path, help="of the peer's own process")
    parser.add_argument("--dtypes", nargs="*", choices=TYPES, default=TYPES)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compile", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.model:
        train_peer(arguments)
        return
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        folder = folder_of_smollm2(work / "smollm2")
        for turn in range(arguments.rounds):
            rates.setdefault("ftjax", []).append(ours(arguments, work / f"run{turn}"))
            for dtype, compiled in (peer for peer in PEERS if peer[0] in arguments.dtypes):
                label = f"SFTTrainer {dtype}{', compiled' * compiled}"
                rates.setdefault(label, []).append(peer(arguments, folder, dtype, compiled))
            for side, values in rates.items():
                print(f"{side}: {values[-1]:,.0f} tokens/s", flush=True)
    medians = {side: statistics.median(values) for side, values in rates.items()}
    best = max(rate for side, rate in medians.items() if side != "ftjax")
    print("| | tokens/s |\n|---|---:|")
    for side, rate in medians.items():
        print(f"| {side} | {rate:,.0f} |")
    print(f"ratio to the best: {medians['ftjax'] / best:.2f}")


if __name__ == "__main__":
    main()
