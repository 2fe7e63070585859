"""The peer's side of scripts/benchmark_gpu.py: transformers and peft, on the same files."""

import importlib.util
import json
import resource
import time
from pathlib import Path
from typing import Any

import benchmark_gpu as bench
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

PACKED = "flash_attention_2" if importlib.util.find_spec("flash_attn") else "sdpa"


def model_class(workload: bench.Workload) -> Any:
    return getattr(transformers, workload.config["architectures"][0])


def write_model(workload: bench.Workload, workdir: Path) -> None:
    """A model with random weights, and an adapter as peft begins with it; kept once written."""
    folder = workdir / workload.name
    adapter = workdir / f"{workload.name}-adapter"
    if (adapter / "adapter_model.safetensors").exists():
        return
    torch.manual_seed(0)
    values = {k: v for k, v in workload.config.items() if k not in ("model_type", "architectures")}
    config = transformers.AutoConfig.for_model(workload.config["model_type"], **values)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = model_class(workload)(config)
    model.save_pretrained(folder)
    lora = LoraConfig(r=bench.RANK, lora_alpha=bench.ALPHA, target_modules=list(workload.targets))
    get_peft_model(model, lora).save_pretrained(adapter)
    file = adapter / "adapter_config.json"  # which names no base that a network would be asked for
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": None}))


def peer(
    workload: bench.Workload, method: str, workdir: Path, seconds: float, compiled: bool
) -> dict[str, Any]:
    """Times the peer's step: bfloat16 over float32 weights that train, the fused AdamW."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    begin = time.perf_counter()
    torch.set_float32_matmul_precision("high")
    attention = PACKED if workload.task == "causal_lm" and device == "cuda" else "sdpa"
    dtype = torch.float32 if method == "full" else torch.bfloat16
    model = model_class(workload).from_pretrained(
        workdir / workload.name, dtype=dtype, attn_implementation=attention
    )
    if method == "lora":  # whose factors peft keeps in float32 over frozen weights in bfloat16
        adapter = workdir / f"{workload.name}-adapter"
        model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    model.to(device).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    rate = bench.RATES[method]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0, fused=True)
    batches = [inputs(workload, bench.batch_of(workload, i), device) for i in range(bench.BATCHES)]
    forward = torch.compile(model) if compiled else model

    def one(number: int) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16):
            loss = forward(**batches[number % bench.BATCHES]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    timed = bench.timing(one, float, seconds)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device == "cuda":
        memory = torch.cuda.max_memory_allocated()
    return timed | {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "peak_bytes": memory,
        "trainable": sum(p.numel() for p in trained),
        "attention": attention,
        "start_seconds": time.perf_counter() - begin - timed["timed_seconds"],
    }


def inputs(workload: bench.Workload, batch: dict[str, Any], device: str) -> dict[str, Any]:
    """A packed batch as transformers takes it."""
    arrays = {name: torch.from_numpy(array).to(device) for name, array in batch.items()}
    segments, positions = arrays["segment_ids"], arrays["position_ids"]
    ids = arrays["input_ids"].long()
    if workload.task == "causal_lm":  # which tells examples apart where positions begin anew
        learned = (segments > 0) & (positions > 0)
        labels = torch.where(learned, ids, -100)
        padding = segments == 0
        # Padding is an example of its own.
        after = torch.arange(ids.shape[1], device=device) - padding.int().argmax(1, keepdim=True)
        positions = torch.where(padding, after.int(), positions)
        return {"input_ids": ids, "position_ids": positions.long(), "labels": labels,
                "use_cache": False}  # fmt: skip
    mask = segments[:, None, :, None] == segments[:, None, None, :]
    labels = torch.where(arrays["masked"] > 0, arrays["originals"].long(), -100)
    return {"input_ids": ids, "position_ids": positions.long(), "labels": labels,
            "attention_mask": mask}  # fmt: skip
