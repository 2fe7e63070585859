"""Our methods beside `peft`'s, and tiny models of its families under both."""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
import peft
import torch
import transformers

from ftjax import methods, pretrained, tuned
from ftjax.build import build_tuned
from ftjax.parallel.mesh import make_mesh
from ftjax.paths import expand
from tests.models.cases import PLAIN, SIZES, SPECIAL, T5
from tests.models.random_models import quick

torch.set_num_threads(1)
FAMILIES = {  # name → configuration, class, our head, peft's task
    "bert": (
        lambda: transformers.BertConfig(**{**SIZES, "num_hidden_layers": 2}),
        transformers.BertForSequenceClassification,
    ),
    "roberta": (
        lambda: transformers.RobertaConfig(**{**SIZES, "num_hidden_layers": 2}, type_vocab_size=1),
        transformers.RobertaForSequenceClassification,
    ),
    "gpt2": (
        lambda: transformers.GPT2Config(
            vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4, **SPECIAL
        ),
        transformers.GPT2ForSequenceClassification,
    ),
    "llama": (
        lambda: transformers.LlamaConfig(**{**PLAIN, "num_hidden_layers": 2}),
        transformers.LlamaForSequenceClassification,
    ),
    "phi3": (
        lambda: transformers.Phi3Config(**{**PLAIN, "num_hidden_layers": 2}),
        transformers.Phi3ForSequenceClassification,
    ),
    "mixtral": (
        lambda: transformers.MixtralConfig(
            **{**PLAIN, "num_hidden_layers": 2}, num_local_experts=4, num_experts_per_tok=2
        ),
        transformers.MixtralForSequenceClassification,
    ),
    "t5": (
        # With an odd number of layers, those under peft's prefix tuning share none.
        lambda: transformers.T5Config(**{**T5, "num_decoder_layers": 3}),
        transformers.T5ForConditionalGeneration,
    ),
}
LABELS, STEPS = 3, 20


@dataclass(frozen=True)
class Row:
    """A method under settings that mean the same on both sides.

    Attributes:
        ours: `method` of a configuration.
        kind: peft's configuration class.
        theirs: its arguments.
        families: with which it is compared; peft lacks some methods for some.
        special: a family → what differs there, of ours and of theirs.
        stacked: what the folder that we write for GPT-2 says besides: its queries, keys and values
            are three projections of ours and one of theirs, whose adapter holds ours one beside
            the other.
        rates: a family → learning rate of the steps that are compared.
    """

    ours: Mapping[str, Any]
    kind: type
    theirs: Mapping[str, Any]
    families: tuple[str, ...] = ("bert", "roberta", "gpt2", "llama", "t5")
    special: Mapping[str, tuple[dict, dict]] = field(default_factory=dict)
    stacked: Mapping[str, Any] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)

    def rate(self, family: str) -> float:
        return self.rates.get(family, 0.02)

    def settings(self, family: str) -> dict[str, Any]:
        return {**self.ours, **self.special.get(family, ({}, {}))[0]}

    def config(self, family: str, stacked: bool = False) -> peft.PeftConfig:
        more = {**self.special.get(family, ({}, {}))[1]}
        if stacked and family == "gpt2":
            more |= self.stacked
        task = "SEQ_2_SEQ_LM" if family == "t5" else "SEQ_CLS"
        return self.kind(task_type=task, **{**self.theirs, **more})


C_ATTN = {"gpt2": ({"targets": ("c_attn",)}, {"fan_in_fan_out": True})}
PARTS = ("c_fc", "mlp.c_proj")
WHOLE = {"gpt2": ({"targets": PARTS}, {"target_modules": list(PARTS), "fan_in_fan_out": True})}
LINEAR = ("bert", "roberta", "llama", "t5")  # of which all projections are torch.nn.Linear
NORMS = {
    "bert": ({}, {"target_modules": ["LayerNorm"]}),
    "roberta": ({}, {"target_modules": ["LayerNorm"]}),
}
ROWS = {
    # Beside virtual tokens, peft's decoders classify what stands in the last column, also padding.
    "prompt_tuning": Row(
        {"name": "prompt_tuning", "length": 4},
        peft.PromptTuningConfig,
        {"num_virtual_tokens": 4, "num_transformer_submodules": 1},
        families=("bert", "roberta", "t5"),
    ),
    "prefix_tuning": Row(
        {"name": "prefix_tuning", "length": 4},
        peft.PrefixTuningConfig,
        {"num_virtual_tokens": 4},
        rates={"t5": 0.5},
    ),
    "lora": Row(
        {"name": "lora", "rank": 4, "alpha": 6.0},
        peft.LoraConfig,
        {"r": 4, "lora_alpha": 6.0},
        special=C_ATTN,
        stacked={"rank_pattern": {"c_attn": 12}, "alpha_pattern": {"c_attn": 18}},
    ),
    "lora-all-linear": Row(
        {"name": "lora", "rank": 3, "targets": "all-linear"},
        peft.LoraConfig,
        {"r": 3, "lora_alpha": 8, "target_modules": "all-linear"},
        families=("bert", "llama", "t5"),
    ),
    "lora-words": Row(
        {"name": "lora", "rank": 4, "alpha": 6.0, "targets": ("query", "embeddings/word")},
        peft.LoraConfig,
        {"r": 4, "lora_alpha": 6.0, "target_modules": ["query", "word_embeddings"]},
        families=("bert", "llama", "gpt2"),
        special={
            "llama": (
                {"targets": ("embed_tokens",)},
                {"target_modules": ["embed_tokens"]},
            ),
            "gpt2": ({"targets": ("wte",)}, {"target_modules": ["wte"]}),
        },
    ),
    "dora-words": Row(
        {"name": "dora", "rank": 4, "alpha": 6.0, "targets": ("word_embeddings",)},
        peft.LoraConfig,
        {"r": 4, "lora_alpha": 6.0, "use_dora": True, "target_modules": ["word_embeddings"]},
        families=("bert", "llama"),
        special={"llama": ({"targets": ("words",)}, {"target_modules": ["embed_tokens"]})},
    ),
    "rslora-words": Row(
        {"name": "rslora", "rank": 4, "alpha": 6.0, "targets": ("words",)},
        peft.LoraConfig,
        {"r": 4, "lora_alpha": 6.0, "use_rslora": True, "target_modules": ["embed_tokens"]},
        families=("llama",),
    ),
    "rslora": Row(
        {"name": "rslora", "rank": 4, "alpha": 6.0},
        peft.LoraConfig,
        {"r": 4, "lora_alpha": 6.0, "use_rslora": True},
        families=("bert", "gpt2"),
        special=C_ATTN,
        stacked={"rank_pattern": {"c_attn": 12}, "alpha_pattern": {"c_attn": 6 * 3**0.5}},
    ),
    "dora": Row(
        {"name": "dora", "rank": 4, "alpha": 6.0},
        peft.LoraConfig,
        {"r": 4, "lora_alpha": 6.0, "use_dora": True},
        families=("bert", "gpt2", "llama", "t5"),
        special=C_ATTN,
        stacked={"rank_pattern": {"c_attn": 12}, "alpha_pattern": {"c_attn": 18}},
    ),
    **{
        name: Row(
            {"name": name, "rank": 4, "alpha": 6.0},
            peft.LoraConfig,
            {"r": 4, "lora_alpha": 6.0, "init_lora_weights": name},
            families=("bert", "llama"),
        )
        for name in ("pissa", "olora")
    },
    "vera": Row(
        {"name": "vera", "rank": 8},
        peft.VeraConfig,
        {"r": 8},
        special=WHOLE,
        rates={"t5": 10.0},
    ),
    "vera-sizes": Row(
        {"name": "vera", "rank": 5, "targets": ("key", "up", "down")},
        peft.VeraConfig,
        {"r": 5, "target_modules": ["k_proj", "up_proj", "down_proj"]},
        families=("llama",),
    ),
    "loha": Row(
        {"name": "loha", "rank": 4, "alpha": 6.0},
        peft.LoHaConfig,
        {"r": 4, "alpha": 6.0},
        families=LINEAR,
        rates={"t5": 5.0},
    ),
    "lokr": Row(
        {"name": "lokr", "rank": 2, "alpha": 6.0},
        peft.LoKrConfig,
        {"r": 2, "alpha": 6.0},
        families=LINEAR,
        rates={"t5": 0.1},
    ),
    "lokr-both": Row(
        {"name": "lokr", "rank": 1, "factor": 8, "decompose_both": True, "targets": ("key", "up")},
        peft.LoKrConfig,
        {
            "r": 1,
            "decompose_factor": 8,
            "decompose_both": True,
            "target_modules": ["k_proj", "up_proj"],
        },
        families=("llama",),
    ),
    "lokr-whole": Row(
        {"name": "lokr", "rank": 8},
        peft.LoKrConfig,
        {"r": 8},
        families=("bert",),
    ),
    "oft": Row(
        {"name": "oft", "block": 8},
        peft.OFTConfig,
        {"oft_block_size": 8},
        families=LINEAR,
        special={"t5": ({"terms": 3}, {"num_cayley_neumann_terms": 3})},
    ),
    "oft-cayley": Row(
        {"name": "oft", "block": 16, "neumann": False},
        peft.OFTConfig,
        {"oft_block_size": 16, "use_cayley_neumann": False},
        families=("bert",),
    ),
    "ia3": Row(
        {"name": "ia3"},
        peft.IA3Config,
        {},
        special={
            # Of BERT's modules, peft's own choice has the attention's output besides.
            "bert": (
                {"targets": ("key", "value"), "feedforward": ("output.dense",)},
                {},
            ),
            "roberta": (
                {"feedforward": "none"},
                {"target_modules": ["key", "value"], "feedforward_modules": []},
            ),
            "gpt2": ({"targets": ("c_attn",)}, {"fan_in_fan_out": True}),
        },
    ),
    "layer_norm": Row({"name": "layer_norm"}, peft.LNTuningConfig, {}, special=NORMS),
    "layer_norm-part": Row(
        {"name": "layer_norm", "targets": ("output.LayerNorm",)},
        peft.LNTuningConfig,
        {"target_modules": ["output.LayerNorm"]},
        families=("bert", "llama"),
        special={
            "llama": (
                {"targets": ("ffn_norm", "model.norm")},
                {"target_modules": ["post_attention_layernorm", "model.norm"]},
            )
        },
    ),
    "adalora": Row(
        {"name": "adalora", "rank": 4, "alpha": 48.0, "target_rank": 2, "orthogonality": 0.0},
        peft.AdaLoraConfig,
        {"init_r": 4, "lora_alpha": 48.0, "target_r": 2, "total_step": 20, "orth_reg_weight": 0.0},
        families=("bert", "llama", "t5"),
        special={"t5": ({}, {"target_modules": ["q", "v"]})},
    ),
}


@dataclass
class Base:
    """A random model of transformers in a folder."""

    family: str
    folder: Path
    model: torch.nn.Module

    def copy(self) -> torch.nn.Module:
        return copy.deepcopy(self.model)

    @property
    def batch(self) -> dict[str, np.ndarray]:
        random = np.random.default_rng(0)
        mask = (np.arange(9) < np.array([9, 6, 7, 5])[:, None]).astype(np.int32)
        batch = {"input_ids": random.integers(4, 64, mask.shape) * mask, "attention_mask": mask}
        if self.family == "t5":
            batch["decoder_input_ids"] = random.integers(4, 64, (4, 5))
        return batch

    @property
    def labels(self) -> np.ndarray:
        shape, size = ((4, 5), 64) if self.family == "t5" else ((4,), LABELS)
        return np.random.default_rng(1).integers(0, size, shape)

    def under(self, settings: Mapping[str, Any], segments: str = "unrolled") -> tuned.Tuned:
        """Our model under a method."""
        kind = "seq2seq_lm" if self.family == "t5" else "classification"
        config = json.loads((self.folder / "config.json").read_text())
        head = {"head": kind, "labels": LABELS}
        return build_tuned(config, methods.create(settings), {"segments": segments}, head)

    @cached_property
    def params(self) -> dict[str, np.ndarray]:
        """The base's parameters, by unrolled path."""
        mesh, model = make_mesh(devices=jax.devices()[:1]), self.under({"name": "full"})
        loaded, absent = pretrained.load(self.folder, model, mesh, jax.random.key(0))
        assert not absent
        return {path: np.asarray(leaf) for path, leaf in loaded.items()}

    def moved(self, model: tuned.Tuned, seed: int = 2) -> dict[str, np.ndarray]:
        """The base's parameters, and a random adapter; what trains is elsewhere than there."""
        random, params = np.random.default_rng(seed), {}
        for path, leaf in model.shapes.items():
            layers = [self.params[name] for name in expand(path) if name in self.params]
            value = np.reshape(layers, leaf.shape) if layers else np.zeros(leaf.shape, np.float32)
            if model.partition.is_trainable(path) or not layers:
                value = value + 0.1 * random.normal(size=leaf.shape).astype(np.float32)
            params[path] = value
        started = model.method.initialize(model.base, params, jax.random.key(0))
        frozen = (path for path in started if not model.partition.is_trainable(path))
        return params | {path: np.asarray(started[path]) for path in frozen}


def make_base(family: str, folder: Path) -> Base:
    """A model that is not trivial anywhere, saved in a folder."""
    make, cls = FAMILIES[family]
    torch.manual_seed(0)
    config = make()
    config.num_labels = LABELS
    model = cls(config).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.squeeze().ndim == 1:
                tensor += 0.1 * torch.randn_like(tensor)
    model.save_pretrained(folder)
    return Base(family, folder, model)


def their_logits(model: torch.nn.Module, batch: Mapping[str, np.ndarray]) -> torch.Tensor:
    return model(**{name: torch.tensor(array) for name, array in batch.items()}).logits


def their_loss(logits: torch.Tensor, labels: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, -2), torch.tensor(labels).flatten().long()
    )


def stepper(model: tuned.Tuned, base: Base, rate: float):
    """Our step of SGD, compiled: trainable, frozen → those after it, loss, logits, gradients."""
    batch, labels = base.batch, base.labels

    def loss(trainable, frozen):
        logits = model.apply({**frozen, **trainable}, batch)
        picked = jax.numpy.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)
        return -picked.mean(), logits

    def step(trainable, frozen):
        (value, logits), grads = jax.value_and_grad(loss, has_aux=True)(trainable, frozen)
        after = jax.tree.map(lambda x, g: x - rate * g, trainable, grads)
        return after, value, logits, grads

    return quick(step)


def adapted(base: Base, row: Row, stacked: bool = False) -> torch.nn.Module:
    """peft's model of a row with a random adapter."""
    torch.manual_seed(3)
    model = peft.get_peft_model(base.copy(), row.config(base.family, stacked)).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.requires_grad:
                tensor += 0.1 * torch.randn_like(tensor)
    return model


def written(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of what peft would save."""
    state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


@cache
def base_of(family: str, parent: Path) -> Base:
    return make_base(family, parent / family)
