"""How tests compile: in a hurry, since small models are compiled longer than run."""

import platform
from importlib.metadata import version

OPTIONS: dict[str, int | bool] = {"xla_backend_optimization_level": 0}
if version("jaxlib").startswith("0.10."):  # later ones refuse what they do not know
    OPTIONS["xla_cpu_use_fusion_emitters"] = False
    OPTIONS["xla_cpu_parallel_codegen_split_count"] = 1
FLAGS = " ".join(f"--{name}={int(value)}" for name, value in OPTIONS.items())
if platform.machine() == "x86_64":  # else model.products=auto is another on another processor
    FLAGS += " --xla_cpu_max_isa=AVX512"
if version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE"
