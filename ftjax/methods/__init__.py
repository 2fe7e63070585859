"""The registry of methods: a new method is one file and one line here.

Or it is nothing here: a class of another package, see `ftjax.registry`.
"""

from collections.abc import Mapping
from typing import Any

from ftjax import registry
from ftjax.options import defaults

# name → (module, class, what it trains)
METHODS: registry.Table = {
    "full": ("selection", "Full", "all parameters"),
    "head": ("selection", "Head", "the task head over a frozen backbone"),
    "top_k": ("selection", "TopK", "the last (k > 0) or first (k < 0) |k| layers and the head"),
    "bitfit": ("selection", "BitFit", "every bias and the head"),
    "layer_norm": ("selection", "LayerNorm", "every norm and the head"),
    "regex": ("selection", "Regex", "what patterns of one's own select"),
    "gradual_unfreezing": ("schedules", "GradualUnfreezing", "the head, then layers from the top"),
    "layerwise_lr_decay": ("schedules", "LayerwiseLrDecay", "all, lower layers more slowly"),
    "lisa": ("schedules", "Lisa", "embeddings, head, and a few layers drawn anew"),
    "galore": ("galore", "Galore", "all parameters, by low-rank gradients"),
    "houlsby": ("bottleneck", "Houlsby", "adapters after attention and after feed-forward"),
    "pfeiffer": ("bottleneck", "Pfeiffer", "adapters after feed-forward"),
    "adapter_drop": ("bottleneck", "AdapterDrop", "adapters after feed-forward of upper layers"),
    "parallel": ("bottleneck", "Parallel", "adapters beside feed-forward"),
    "scaled_parallel": ("bottleneck", "ScaledParallel", "the same with a learned scale"),
    "adapter_fusion": ("fusion", "AdapterFusion", "attention over several adapters"),
    "compacter": ("compacter", "Compacter", "hypercomplex adapters placed as houlsby's"),
    "compacter_pp": ("compacter", "CompacterPP", "hypercomplex adapters placed as pfeiffer's"),
    "lora": ("lora", "Lora", "low-rank updates of chosen projections"),
    "prompt_tuning": ("prompt", "PromptTuning", "vectors before each example's embeddings"),
    "p_tuning": ("prompt", "PTuning", "an encoder of vectors before each example's embeddings"),
    "prefix_tuning": ("prefix", "PrefixTuning", "keys and values before each layer's own"),
    "adalora": ("adalora", "AdaLora", "LoRA whose ranks move to where they matter"),
    "rslora": ("rslora", "RsLora", "LoRA scaled by α/√r"),
    "lora_plus": ("lora_plus", "LoraPlus", "LoRA whose B learns faster than A"),
    "lora_fa": ("lora_fa", "LoraFa", "LoRA whose A is frozen"),
    "dora": ("dora", "Dora", "LoRA of directions, and magnitudes of their own"),
    "pissa": ("pissa", "Pissa", "LoRA from the leading singular vectors"),
    "olora": ("pissa", "Olora", "LoRA from an orthonormal basis of the weights"),
    "vera": ("vera", "Vera", "vectors around random matrices that all layers share"),
    "loha": ("loha", "Loha", "Hadamard products of low-rank updates"),
    "lokr": ("lokr", "Lokr", "Kronecker products as updates"),
    "oft": ("oft", "Oft", "rotations of the inputs of chosen projections"),
    "ia3": ("ia3", "Ia3", "vectors that rescale keys, values and inner activations"),
    "qlora": ("qlora", "QLora", "what another method trains, over a base in 4 or 8 bits"),
    "prompting": ("prompting", "Prompting", "nothing: labels are scored by prompts"),
    "combination": ("combination", "Combination", "what several methods do"),
    "reft": ("reft", "Reft", "interventions on a few tokens' hidden states"),
    "mam": ("mam", "Mam", "prefixes and adapters beside feed-forward"),
    "unipelt": ("unipelt", "Unipelt", "gated prefixes, adapters and low-rank updates"),
}
REGISTRY = registry.Registry(
    "method.name={!r}", "ftjax.methods", METHODS, "ftjax.methods", "ftjax.methods.method:Method"
)


def find(name: str) -> type:
    """The dataclass of hyperparameters registered as `name`."""
    return REGISTRY.find(name)


def hyperparameters(name: str) -> dict[str, Any]:
    """Names and defaults of a method's hyperparameters."""
    return defaults(find(name))


def create(settings: Mapping[str, Any]) -> Any:
    """A method from {"name": ..., hyperparameter: value, ...}."""
    return REGISTRY.create(settings)


def name_of(method: Any) -> str:
    """What a method is registered as, or its dotted name."""
    return REGISTRY.name_of(type(method))
