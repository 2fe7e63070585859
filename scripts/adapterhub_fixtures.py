"""Writes tests/fixtures/adapterhub: adapters as AdapterHub's library saves them, and what it says.

Needs an environment of its own, since `adapters` wants an older transformers than the tests:

    python -m venv adapterhub
    adapterhub/bin/pip install torch==2.13.0 adapters==1.3.0 numpy
    adapterhub/bin/python scripts/adapterhub_fixtures.py [FAMILY ...]

For each family there is a small random model, `FAMILY/base`, and a folder for each method with
what `save_adapter`, of a fusion `save_adapter_setup`, writes and `reference.safetensors`:

    input_ids, attention_mask, decoder_input_ids     the inputs, padded on the right
    last_hidden_state, logits                        the outputs
    weight                                           zero at padding
    gradients/NAME                                   of sum(last_hidden_state · weight)
    full/...                                         the same without padding, for T5 with a
                                                     decoder's input of another length; gradients
                                                     for unipelt alone, whose gates see padding

`FAMILY/static` is an adapter of transformers' own sequence classifier, with logits alone.
NAME is the library's name of each trainable parameter of the adapter; the count of these is the
file's metadata "parameters". `counts.json` has the counts of the default configurations on the
shapes of BERT-base. Attention is the eager one: with SDPA, `adapters` 1.3.0 turns the boolean masks
of decoders' prefixes the wrong way round.
"""

import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import adapters
import torch
import transformers
from adapters import composition, heads
from safetensors.torch import save_file
from torch import Tensor, nn

OUTPUT = Path(__file__).parents[1] / "tests" / "fixtures" / "adapterhub"
NAME = "task"
LABELS = 3
ROWS, LENGTH = 2, 9
SHORT = 6  # length of T5's other decoder input

BERT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
}
CONFIGS = {
    "bert": lambda: transformers.BertConfig(**BERT),
    "roberta": lambda: transformers.RobertaConfig(
        **BERT, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=64,
        n_positions=32,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_inner=64,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    ),
    "llama": lambda: transformers.LlamaConfig(
        **BERT, num_key_value_heads=2, pad_token_id=0, bos_token_id=2, eos_token_id=3
    ),
    "t5": lambda: transformers.T5Config(
        vocab_size=64,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        initializer_factor=1.0,
        decoder_start_token_id=0,
    ),
}
PREFIX = {"prefix_length": 5, "bottleneck_size": 16}
METHODS = {
    "houlsby": lambda: adapters.DoubleSeqBnConfig(reduction_factor=4),
    "pfeiffer": lambda: adapters.SeqBnConfig(reduction_factor=4),
    "parallel": lambda: adapters.ParBnConfig(reduction_factor=4),
    "scaled_parallel": lambda: adapters.ParBnConfig(reduction_factor=4, scaling="learned"),
    "compacter": lambda: adapters.CompacterConfig(reduction_factor=4),
    "compacter_pp": lambda: adapters.CompacterPlusPlusConfig(reduction_factor=4),
    "prefix_tuning": lambda: adapters.PrefixTuningConfig(**PREFIX),
    "prefix_tuning_flat": lambda: adapters.PrefixTuningConfig(flat=True, prefix_length=5),
    "lora": lambda: adapters.LoRAConfig(r=4, alpha=6),
    "ia3": lambda: adapters.IA3Config(),
    "loreft": lambda: adapters.LoReftConfig(r=2, suffix_positions=2),
    "noreft": lambda: adapters.NoReftConfig(r=2, suffix_positions=2),
    "direft": lambda: adapters.DiReftConfig(r=2, suffix_positions=2),
    "mam": lambda: adapters.MAMConfig(
        adapters.PrefixTuningConfig(**PREFIX), adapters.ParBnConfig(reduction_factor=4)
    ),
    "unipelt": lambda: adapters.UniPELTConfig(
        adapters.PrefixTuningConfig(**PREFIX),
        adapters.SeqBnConfig(reduction_factor=4),
        adapters.LoRAConfig(r=4, alpha=6),
    ),
    "adapter_drop": lambda: adapters.SeqBnConfig(reduction_factor=4, leave_out=[0]),
    "lora_upper": lambda: adapters.LoRAConfig(r=4, alpha=6, leave_out=[0]),
    "lora_inner": lambda: adapters.LoRAConfig(r=4, alpha=6, leave_out=[0, 3]),
    "dora": lambda: adapters.DoRAConfig(r=4, alpha=4),
}
DEFAULTS = {  # our name → the library's default configuration
    "houlsby": "double_seq_bn",
    "pfeiffer": "seq_bn",
    "parallel": "par_bn",
    "scaled_parallel": "scaled_par_bn",
    "compacter": "compacter",
    "compacter_pp": "compacter++",
    "prefix_tuning": "prefix_tuning",
    "prefix_tuning_flat": "prefix_tuning_flat",
    "lora": "lora",
    "ia3": "ia3",
    "loreft": "loreft",
    "noreft": "noreft",
    "direft": "direft",
    "mam": "mam",
    "unipelt": "unipelt",
}
STATIC = {
    "bert": transformers.BertForSequenceClassification,
    "roberta": transformers.RobertaForSequenceClassification,
    "llama": transformers.LlamaForSequenceClassification,
}
ONLY = {
    "adapter_drop": ("bert", "llama"),
    "adapter_fusion": ("bert", "gpt2", "t5"),
    "lora_upper": ("bert", "gpt2"),
    "lora_inner": ("t5",),
    "dora": ("llama", "t5"),
}


def seed(*words: str) -> None:
    torch.manual_seed(zlib.crc32("/".join(words).encode()))


def write_base(family: str, folder: Path) -> None:
    """A random model whose biases and norms are not trivial."""
    seed(family)
    model = transformers.AutoModel.from_config(CONFIGS[family]())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "relative" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder, safe_serialization=True)
    for extra in folder.glob("generation_config.json"):
        extra.unlink()


def make_inputs(family: str) -> dict[str, dict[str, Tensor]]:
    """By prefix, ids with one end-of-sequence token a row, and a mask."""
    seed(family, "inputs")
    config = CONFIGS[family]()
    ids = torch.randint(4, 64, (ROWS, LENGTH))
    lengths = torch.tensor([LENGTH, LENGTH - 4])
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    full = {"input_ids": ids.clone(), "attention_mask": torch.ones_like(ids)}
    full["input_ids"][:, -1] = config.eos_token_id or 3
    ids[torch.arange(ROWS), lengths - 1] = config.eos_token_id or 3
    padded = {"input_ids": torch.where(mask > 0, ids, config.pad_token_id), "attention_mask": mask}
    if family == "t5":
        start = torch.zeros(ROWS, 1, dtype=torch.long)
        padded["decoder_input_ids"] = torch.cat([start, padded["input_ids"][:, :-1]], 1)
        full["decoder_input_ids"] = torch.randint(4, 64, (ROWS, SHORT))
    return {"": padded, "full/": full}


def randomize(names: list[str], parameters: dict[str, Tensor]) -> None:
    """Nothing is left at zero or one, where a wrong formula might pass."""
    with torch.no_grad():
        for name in names:
            parameter = parameters[name]
            noise = 0.2 * torch.randn_like(parameter)
            if "parametrizations.weight.original" in name:  # its diagonal holds signs
                noise = noise.triu(1)
            if "phm_rule" in name:
                noise = 2.5 * noise
            parameter.add_(noise)


def add_head(model: nn.Module, family: str, method: str) -> None:
    """The library's default head under houlsby; else the one its own loader makes of the family's
    sequence classifier."""
    options = {"num_labels": LABELS}
    if method != "houlsby" and family in ("bert", "gpt2", "llama"):
        options |= {"layers": 1, "activation_function": None}
        options |= {"use_pooler": True} if family == "bert" else {"bias": False}
    model.add_prediction_head(heads.ClassificationHead(model, NAME, **options))
    with torch.no_grad():
        for parameter in model.heads[NAME].parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))


def run(model: nn.Module, inputs: dict[str, Tensor], with_head: bool) -> dict[str, Tensor]:
    """Last hidden states, and logits where there is a head."""
    held = {}

    def keep(module, args, output):
        held["last_hidden_state"] = output[0]

    hook = model.base_model.register_forward_hook(keep)
    found = model(**inputs) if with_head else model.base_model(**inputs)
    hook.remove()
    return held | ({"logits": found.logits} if with_head else {})


def reference(model: nn.Module, family: str, method: str, names: list[str]) -> dict[str, Tensor]:
    """Inputs, outputs and gradients, with and without padding."""
    parameters, batches = dict(model.named_parameters()), make_inputs(family)
    if family == "t5" and "reft" in method:
        del batches["full/"]  # where the library applies the encoder's positions to the decoder
    stored = {f"{prefix}{key}": x for prefix, batch in batches.items() for key, x in batch.items()}
    for prefix in batches:
        inputs = batches[prefix]
        found = run(model, inputs, not prefix or family != "t5")
        stored |= {f"{prefix}{key}": value.detach() for key, value in found.items()}
        if prefix and method != "unipelt":
            continue
        hidden = found["last_hidden_state"]
        seed(family, method, prefix, "weight")
        weight = torch.randn_like(hidden)
        if not prefix:
            weight = weight * inputs["attention_mask"][..., None]
        gradients = torch.autograd.grad((hidden * weight).sum(), [parameters[n] for n in names])
        stored[f"{prefix}weight"] = weight
        for name, gradient in zip(names, gradients, strict=True):
            stored[f"{prefix}gradients/{name}"] = gradient
    return {name: tensor.contiguous() for name, tensor in stored.items()}


def trainable(model: nn.Module) -> list[str]:
    """Names of the parameters that train, without the head's."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not name.startswith("heads.")
    ]


def write_method(family: str, method: str, folder: Path) -> int:
    """One folder; the number of trainable parameters."""
    seed(family, method)
    base = f"{family}/base"
    model = adapters.AutoAdapterModel.from_pretrained(base, attn_implementation="eager")
    fused = composition.Fuse("first", "second")
    if method == "adapter_fusion":
        for name in fused:
            model.add_adapter(name, adapters.SeqBnConfig(reduction_factor=4))
        model.train_adapter(fused)
        names = trainable(model)
        randomize(names, dict(model.named_parameters()))
        model.add_adapter_fusion(fused)
        model.train_adapter_fusion(fused)
    else:
        model.add_adapter(NAME, METHODS[method]())
        model.train_adapter(NAME)
    names = trainable(model)
    randomize(names, dict(model.named_parameters()))
    add_head(model, family, method)
    model.active_head = NAME
    model.eval()
    tensors = reference(model, family, method, names)
    folder.mkdir(parents=True)
    if method == "adapter_fusion":
        model.save_adapter_setup(folder, fused, head_setup=NAME, use_safetensors=True)
    else:
        # The library cannot write its prefixes as safetensors: it holds them more than once.
        safe = not any("prefix" in name for name in names)
        model.save_adapter(folder, NAME, with_head=True, use_safetensors=safe)
        if (family, method) == ("bert", "houlsby"):
            pickled = OUTPUT / family / "houlsby_pickled"
            model.save_adapter(pickled, NAME, with_head=True, use_safetensors=False)
    count = sum(dict(model.named_parameters())[name].numel() for name in names)
    save_file(tensors, folder / "reference.safetensors", {"parameters": str(count)})
    return count


def write_static(family: str, folder: Path) -> None:
    """LoRA with a head of transformers' own, as the library stores it; logits alone."""
    seed(family, "static")
    model = STATIC[family].from_pretrained(f"{family}/base", num_labels=LABELS)
    adapters.init(model)
    model.add_adapter(NAME, METHODS["lora"]())
    model.train_adapter(NAME)
    parameters = dict(model.named_parameters())
    randomize([name for name, x in parameters.items() if x.requires_grad], parameters)
    model.eval()
    inputs = make_inputs(family)[""]
    stored = inputs | {"logits": model(**inputs).logits.detach()}
    folder.mkdir(parents=True)
    model.save_adapter(folder, NAME, with_head=True, use_safetensors=True)
    save_file(stored, folder / "reference.safetensors")


def methods_of(family: str) -> Iterator[str]:
    for method in (*METHODS, "adapter_fusion"):
        if family in ONLY.get(method, CONFIGS):
            yield method


def count_defaults() -> dict[str, int]:
    """Parameters of the default configurations on BERT-base, without heads."""
    model = adapters.BertAdapterModel(transformers.BertConfig())
    counts = {}
    for ours, theirs in DEFAULTS.items():
        model.add_adapter(NAME, theirs)
        model.train_adapter(NAME)
        parameters = dict(model.named_parameters())
        counts[ours] = sum(parameters[name].numel() for name in trainable(model))
        model.delete_adapter(NAME)
    for name in ("first", "second"):
        model.add_adapter(name, "seq_bn")
    fused = composition.Fuse("first", "second")
    model.add_adapter_fusion(fused)
    model.train_adapter_fusion(fused)
    parameters = dict(model.named_parameters())
    counts["adapter_fusion"] = sum(parameters[name].numel() for name in trainable(model))
    return counts


def main(families: list[str]) -> None:
    torch.set_num_threads(1)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    os.chdir(OUTPUT)  # files name their base by its path from here
    for family in families:
        shutil.rmtree(OUTPUT / family, ignore_errors=True)
        write_base(family, OUTPUT / family / "base")
        for method in methods_of(family):
            print(family, method, write_method(family, method, OUTPUT / family / method))
        if family in STATIC:
            write_static(family, OUTPUT / family / "static")
    if families == list(CONFIGS):
        (OUTPUT / "counts.json").write_text(json.dumps(count_defaults(), indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:] or list(CONFIGS))
