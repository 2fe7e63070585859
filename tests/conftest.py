"""A tiny pretrained BERT, made here, and tiny corpora; eight virtual devices."""

import os

from tests.compiler import FLAGS

os.environ.setdefault("XLA_FLAGS", f"{FLAGS} --xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import ctypes
import gc
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import optax
import pytest

from ftjax import methods
from ftjax.build import build_tuned
from ftjax.commands import entry as cli
from ftjax.config import default_config
from ftjax.formats.folder import read_config
from ftjax.formats.hf import mapping
from ftjax.loss import Loss
from ftjax.parallel.mesh import make_mesh
from tests.forked import Forked
from tests.worker import worker

pytest_plugins = ["tests.parity", "tests.covering"]
WORDS = [
    "good",
    "great",
    "fine",
    "lovely",
    "bad",
    "awful",
    "poor",
    "dull",
    "the",
    "a",
    "film",
    "movie",
    "plot",
    "actor",
    "it",
    "was",
    "is",
    "very",
    "not",
    "and",
    "or",
    "but",
    "so",
    "too",
    "music",
    "scene",
    "story",
    "one",
    "two",
    "three",
]
CONFIG = {
    "model_type": "bert",
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "initializer_range": 0.3,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
HEAD = {"head": "classification", "labels": 2, "pooling": "cls"}
HELD, PAGE = 2.5e9, os.sysconf("SC_PAGE_SIZE")  # bytes that a worker may hold between modules


def pytest_sessionstart() -> None:
    """Garbage is looked for rarely: libraries that stay are much to look through each time."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


@pytest.fixture(autouse=True, scope="module")
def _memory():
    """Programs of past modules are let go of, before those of several workers fill the memory."""
    yield
    status = Path("/proc/self/statm")  # of Linux
    if status.exists() and int(status.read_text().split()[1]) * PAGE > HELD:
        jax.clear_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory):
    os.environ["FTJAX_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def one_device():
    """A mesh of one device."""
    return make_mesh(devices=jax.devices()[:1])


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    vocab += [f"[unused{i}]" for i in range(CONFIG["vocab_size"] - len(vocab))]
    model = models.WordPiece({w: i for i, w in enumerate(vocab)}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"unk": "[UNK]", "pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    settings = {f"{name}_token": token for name, token in special.items()}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_tiny(folder: Path, seed: int = 0, **changes) -> Path:
    """A folder of a tiny BERT encoder with random weights."""
    model = build_tuned({**CONFIG, **changes}, methods.create({"name": "full"}), {}, HEAD)
    params = model.init(jax.random.key(seed), list(model.shapes), dict.fromkeys(model.shapes))
    encoder = {path: np.array(leaf) for path, leaf in params.items() if "classifier" not in path}
    random = np.random.default_rng(seed)
    for path, leaf in encoder.items():  # biases and norms that are not trivial
        if path.endswith(("bias", "scale")):
            leaf += random.normal(0, 0.1, leaf.shape).astype(np.float32)
    tensors = mapping.to_tensors(encoder, model.names, prefix=False)
    mapping.write_folder(
        folder, folder, {**CONFIG, **changes, "architectures": ["BertModel"]}, tensors
    )
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny")


def make_rows(count: int, seed: int) -> list[dict]:
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        label = int(random.integers(2))
        words = list(random.choice(WORDS[8:], size=int(random.integers(3, 20))))
        words.insert(
            int(random.integers(len(words))), str(random.choice(WORDS[:4] if label else WORDS[4:8]))
        )
        rows.append({"text": " ".join(words), "label": ("negative", "positive")[label]})
    return rows


def data_settings(task: str = "classification", **changes) -> dict:
    """The `data` section of the default configuration, changed."""
    return {**default_config("full", task).data.to_dict(), **changes}


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train, validation and test .jsonl."""
    folder = tmp_path_factory.mktemp("corpus")
    for number, (split, count) in enumerate({"train": 150, "validation": 40, "test": 40}.items()):
        write_jsonl(folder / f"{split}.jsonl", make_rows(count, number))
    return folder


@pytest.fixture(scope="session")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like `tiny`, of two layers: whole runs trace and compile each of them again and again."""
    return write_tiny(tmp_path_factory.mktemp("models") / "shallow", num_hidden_layers=2)


@pytest.fixture(scope="session")
def config_file(shallow: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of the shallow model on the tiny corpus."""
    file = tmp_path_factory.mktemp("configs") / "tiny.py"
    file.write_text(
        f"""
from ftjax.config import default_config

def get_config(method="full"):
    config = default_config(method)
    config.model.path = {str(shallow)!r}
    config.data.path = {str(corpus)!r}
    config.data.max_length = 32
    config.data.buckets = 1
    config.optimizer.learning_rate = 1e-3
    config.train.epochs = 2
    config.train.batch_size = 16
    config.train.eval_batch_size = 16
    return config
"""
    )
    return file


def ftjax(
    *arguments, devices: int = 1, expect: int = 0, input: str = ""
) -> subprocess.CompletedProcess:
    """Runs the command in another process, of so many devices, and checks its exit code."""
    env = environment(devices)
    said = worker(env["XLA_FLAGS"])(arguments, env, input)
    assert said.returncode == expect, said.stdout + said.stderr
    return subprocess.CompletedProcess(arguments, *said)


@pytest.fixture
def forked_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study's runs are forked from a process that has imported everything, of one device."""

    def start(command: list[str], stdout: Any, stderr: Any, env: dict[str, str]) -> Forked:
        assert command[1:4] == ["-P", "-m", "ftjax"]
        return Forked(command[4:], environment() | {"FTJAX_CACHE": env["FTJAX_CACHE"]})

    names = SimpleNamespace(Popen=start, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr("ftjax.comparison.processes.subprocess", names)


@contextmanager
def seeing(devices: int) -> Iterator[None]:
    """Where this process has the first so many of its devices."""
    first = jax.devices()[:devices]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: first)
        yield


@pytest.fixture(scope="module")
def first_device() -> Iterator[None]:
    """A module's runs are of one device, for which programs are compiled more quickly."""
    with seeing(1):
        yield


@pytest.fixture
def heard() -> Iterator[None]:
    """Python's own handler of Ctrl-C, also where the tests run in a shell's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def here(*arguments, devices: int = 1) -> None:
    """Runs a command in this process, without its start-up: quicker where that is not tested."""
    options, rest = cli.parser().parse_known_args([*map(str, arguments)])
    with seeing(devices):
        cli.COMMANDS[options.command].run(options, rest)


def environment(devices: int = 1) -> dict[str, str]:
    flags = re.sub(r"(?<=device_count=)\d+", str(devices), os.environ["XLA_FLAGS"])
    return {**os.environ, "XLA_FLAGS": flags, "GLIBC_TUNABLES": ""}


def cross_entropy(logits: jax.Array, batch: dict) -> Loss:
    """A classifier's loss, by optax."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    return Loss((losses * batch["weights"]).sum(), batch["weights"].sum())


def build(folder: Path, method: dict, model: dict | None = None, head: dict | None = None):
    """A model under a method, from a folder's config.json."""
    return build_tuned(
        read_config(folder),
        methods.create(method),
        model or {},
        HEAD if head is None else head,
    )


def perturbed(params: dict, model, seed: int = 1) -> dict:
    """Parameters with every trainable leaf moved, so that an adapter does something."""
    random = np.random.default_rng(seed)
    return {
        path: leaf + random.normal(0, 0.05, leaf.shape).astype(leaf.dtype)
        if model.partition.is_trainable(path)
        else leaf
        for path, leaf in params.items()
    }


def make_batch(rows: int = 8, length: int = 12, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    sizes = random.integers(4, length + 1, rows)
    mask = (np.arange(length) < sizes[:, None]).astype(np.int32)
    return {
        "input_ids": random.integers(5, CONFIG["vocab_size"], (rows, length)) * mask,
        "attention_mask": mask,
        "token_type_ids": (np.arange(length) > 3).astype(np.int32)[None] * mask,
        "labels": random.integers(0, 2, rows),
        "weights": np.ones(rows, np.float32),
    }
