"""Damaged files of others end in a result, or in an error of the user's that names them.

From a seed, within bounds of time and memory, and in one process: no mutant may hurt the next.
"""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from ftjax import methods, models
from ftjax.build import build_tuned
from ftjax.errors import UserError
from ftjax.formats import adapter
from ftjax.formats.adapterhub import folder as adapterhub
from ftjax.formats.folder import load_tokenizer, open_weights, stored_dtype
from ftjax.formats.gguf.tokenizer import end_tokens
from ftjax.formats.hf.dequantize import STATE
from ftjax.formats.hf.shards import write_weights
from ftjax.formats.hf.vocabulary import words_of
from ftjax.formats.hf.weights import Weights
from ftjax.formats.sentence_transformers import modules
from ftjax.generation.settings import of_folder
from tests.formats import adapterhub_cases, published
from tests.formats.bounds import bounded
from tests.formats.mutants import damaged
from tests.formats.test_gguf import entries_of, stored, tiny, write
from tests.models.cases import CASES

MUTANTS, MORE = 500, 2000  # of a format, over its files; more by --all


class Case(NamedTuple):
    """A format's files.

    Attributes:
        files: that are damaged in turn.
        read: reads one, and what goes with it.
        named: what an error names; empty for the file.
    """

    files: list[Path]
    read: Callable[[Path], object]
    named: str = ""


def arrays(tensors) -> None:
    for name in tensors:
        np.asarray(tensors[name])


RNG = np.random.default_rng(0)
TENSORS = {
    f"layer.{i}.{name}": RNG.normal(size=(4, 3)).astype(np.float32)
    for i in range(3)
    for name in ("query.weight", "norm.weight")
}


def safetensors(folder: Path) -> Case:
    write_weights(folder, TENSORS)
    return Case([folder / "model.safetensors"], lambda _: arrays(Weights(folder)))


def index(folder: Path) -> Case:
    write_weights(folder, TENSORS, shard_bytes=100)
    return Case([folder / "model.safetensors.index.json"], lambda _: arrays(Weights(folder)))


def pickled(folder: Path, legacy: bool) -> Case:
    state, file = {n: torch.tensor(x) for n, x in TENSORS.items()}, folder / "pytorch_model.bin"
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)
    return Case([file], lambda _: arrays(Weights(folder)))


def read_gguf(file: Path) -> None:
    models.read_config(file)
    arrays(open_weights(file))
    stored_dtype(file)


def gguf_model(folder: Path) -> Case:
    files = []
    for kind in ("llama", "gemma3", "gpt2"):
        model = tiny(kind)
        entries, tensors = entries_of(kind, model.config), stored(kind, model)
        files.append(write(folder / f"{kind}.gguf", kind, entries, tensors))
    return Case(files, read_gguf)


def gguf_tokenizer(folder: Path) -> Case:
    # Small: every pair of its letters, and special tokens.
    letters = sorted(set("the film was good"))
    tokens = ["<s>", "</s>", *letters, "th", "go"]
    pairs = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm"}
    pairs["tokenizer.ggml.merges"] = ["t h", "g o"]
    pieces = {"tokenizer.ggml.model": "llama"}
    pieces["tokenizer.ggml.scores"] = [-float(i) for i in range(len(tokens))]
    shared = {
        "llama.context_length": 16,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, *[1] * (len(tokens) - 2)],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.chat_template": published.CHAT,
    }
    table = {"token_embd.weight": np.ones((len(tokens), 2), np.float32)}
    files = [
        write(folder / f"{name}.gguf", "llama", {**shared, **own}, table)
        for name, own in (("pairs", pairs), ("pieces", pieces))
    ]

    def read(file: Path) -> None:
        load_tokenizer(file)
        words_of(file)
        end_tokens(file)

    return Case(files, read)


def config(folder: Path) -> Case:
    """Of all families, the keys that are set."""
    files = []
    for name, make in CASES.items():
        (folder / name).mkdir()
        files.append(folder / name / "config.json")
        content = {key: value for key, value in make().to_dict().items() if value is not None}
        files[-1].write_text(json.dumps({**content, "id2label": {"0": "no", "1": "yes"}}))

    return Case(files, lambda file: models.read_config(file.parent))


def generation(folder: Path) -> Case:
    (folder / "config.json").write_text(CASES["llama"]().to_json_string())
    settings = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [1, 2]}
    settings |= {"pad_token_id": 0, "bad_words_ids": [[3]], "suppress_tokens": [4], "top_k": 5}
    settings |= {"early_stopping": False, "max_new_tokens": 5, "repetition_penalty": 1.1}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return Case([folder / "generation_config.json"], lambda _: of_folder(folder))


def sentences(folder: Path) -> Case:
    (folder / "config.json").write_text(CASES["bert"]().to_json_string())
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")]
    each = [{"idx": i, "path": p, "type": f"s.models.{k}"} for i, (p, k) in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(each))
    pooling, dense = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}, {}
    dense = {"in_features": 32, "out_features": 8, "bias": True, "id2label": {"0": "a"}}
    dense["activation_function"] = "torch.nn.modules.activation.Tanh"
    for place, content in (("1_Pooling", pooling), ("2_Dense", dense)):
        (folder / place).mkdir()
        (folder / place / "config.json").write_text(json.dumps(content))
    weight = {"linear.weight": np.ones((8, 32), np.float32), "linear.bias": np.ones(8, np.float32)}
    save_file(weight, folder / "2_Dense" / "model.safetensors")

    def read(_: Path) -> None:
        modules.pooled(folder)
        modules.classifier(folder)
        arrays(modules.tensors(folder))

    return Case(sorted(folder.rglob("*s.json")) + sorted(folder.glob("?_*/*")), read)


def quantized(folder: Path, kind: str) -> Case:
    words = {name: np.ones((8, 2), np.int32) for name in ("qweight", "qzeros")}
    words["qzeros"] = words["qzeros"][:2]
    state = json.dumps({"blocksize": 64, "dtype": "float16", "shape": [16, 16]}).encode()
    small = np.ones(4, np.float32)
    parts = {
        "gptq": {
            **words,
            "qweight": np.ones((2, 16), np.int32),
            "scales": np.ones((2, 16), np.float16),
            "g_idx": np.arange(16, dtype=np.int32) // 8,
        },
        "awq": {**words, "scales": np.ones((2, 16), np.float16)},
        "bitsandbytes": {
            "weight": np.ones((128, 1), np.uint8),
            "weight.absmax": small,
            "weight.quant_map": np.ones(16, np.float32),
            f"weight.{STATE}nf4": np.frombuffer(state, np.uint8),
        },
    }[kind]
    eight = {"x.weight": np.ones((4, 4), np.int8), "x.SCB": small}
    own = {f"q.{name}": array for name, array in parts.items()}
    save_file(own | (eight if kind == "bitsandbytes" else {}), folder / "model.safetensors")
    said = {"quant_method": kind, "bits": 4, "group_size": 8, "load_in_4bit": True}
    content = {**CASES["bert"]().to_dict(), "quantization_config": said}
    content = {key: content[key] for key in ("model_type", "dtype", "quantization_config")}
    (folder / "config.json").write_text(json.dumps(content))
    files = [folder / "config.json", folder / "model.safetensors"]
    return Case(files, lambda _: arrays(open_weights(folder)))


def tokenizer(folder: Path, case: str) -> Case:
    published.write(case, folder)
    names = ("config.json", "chat_template.jinja")
    files = [file for file in sorted(folder.glob("*.*")) if file.name not in names]

    def read(_: Path) -> None:
        if (folder / "tokenizer.json").exists():  # else it is loaded to count its words
            words_of(folder)
        load_tokenizer(folder)

    return Case(files, read)


def peft_folder(folder: Path, settings: peft.PeftConfig) -> Case:
    torch.manual_seed(0)
    base = transformers.AutoModel.from_config(CASES["bert"]())
    peft.get_peft_model(base, settings).save_pretrained(folder)
    own = adapter.read_method(folder)
    hf_config = json.loads(CASES["bert"]().to_json_string())
    model = build_tuned(hf_config, methods.create(own), {}, {})
    params = {path: np.zeros(leaf.shape, np.float32) for path, leaf in model.shapes.items()}

    def read(_: Path) -> None:
        if adapter.read_method(folder) == own:
            adapter.load_into(model, params, folder)

    return Case([folder / "adapter_config.json", folder / "adapter_model.safetensors"], read)


def hub_folder(folder: Path, name: str) -> Case:
    shutil.copytree(adapterhub_cases.FOLDER / "bert", folder, dirs_exist_ok=True)
    place = folder / name
    own = adapter.read_method(place)
    model = adapterhub_cases.build(place, method=own)

    def read(_: Path) -> None:
        settings = adapter.read_method(place)
        if (place / adapterhub.HEAD[0]).exists():
            adapterhub.labels_in(place)
        if settings == own:
            adapterhub.read_adapter(place, model)

    ends = (".json", ".safetensors", ".bin")
    files = [file for file in sorted(place.rglob("*")) if file.suffix in ends]
    files = [file for file in files if not file.name.startswith("reference")]
    return Case(files, read, str(place))


LORA = peft.LoraConfig(r=3, target_modules=["query"], rank_pattern={"layer.1.*": 2})
FORMATS: dict[str, Callable[[Path], Case]] = {
    "safetensors": safetensors,
    "index": index,
    "bin": partial(pickled, legacy=False),
    "old bin": partial(pickled, legacy=True),
    "gguf": gguf_model,
    "gguf tokenizer": gguf_tokenizer,
    "config": config,
    "generation": generation,
    "sentence-transformers": sentences,
    "gptq": partial(quantized, kind="gptq"),
    "awq": partial(quantized, kind="awq"),
    "bitsandbytes": partial(quantized, kind="bitsandbytes"),
    "peft lora": partial(peft_folder, settings=LORA),
    "peft prompts": partial(
        peft_folder,
        settings=peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=4),
    ),
    "adapterhub": partial(hub_folder, name="lora"),
    "adapterhub bin": partial(hub_folder, name="houlsby_pickled"),
    "adapterhub fusion": partial(hub_folder, name="adapter_fusion"),
    "tokenizer.json": partial(tokenizer, case="modernbert"),
    "vocabulary": partial(tokenizer, case="bert"),
}


@pytest.mark.parametrize("name", [*FORMATS])
def test_damage_ends_in_a_result_or_is_named(name, tmp_path, pytestconfig):
    mutants = MORE if pytestconfig.getoption("--all") else MUTANTS
    case = FORMATS[name](tmp_path)
    for file in case.files:
        case.read(file)
    ends = {"read": 0, "refused": 0}
    with bounded():
        for file in case.files:
            content, count = file.read_bytes(), mutants // len(case.files)
            for mutant in damaged(content, len(content), count, file.suffix == ".json"):
                file.unlink()  # what is cut short is written to the disk at once, 25 times as slow
                file.write_bytes(mutant)
                try:
                    case.read(file)
                    ends["read"] += 1
                except UserError as error:
                    assert (case.named or str(file)) in str(error)
                    ends["refused"] += 1
            file.write_bytes(content)
            case.read(file)
    assert min(ends.values()) > mutants // 100  # neither is all that happens


def test_settings_of_more_than_the_tensors_are_refused(tmp_path):
    case = FORMATS["peft prompts"](tmp_path)
    file = case.files[0]
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_virtual_tokens": 10**8}))
    with bounded(), pytest.raises(UserError, match="num_virtual_tokens=100000000, and no tensor"):
        case.read(file)
    assert load_file(case.files[1])["prompt_embeddings"].shape == (4, 32)
