"""Learning rates that methods do well at, by the size of the model: `optimizer.learning_rate=auto`.

One table, for AdamW. The first column is measured here: the best of three rates on SST-2, and where
they were run on MRPC and TREC (experiments/COMPARISON.md), with MiniLM, three epochs of 2,000 rows.
The other two were not measured here. They are what the papers named used, or lie near it; where
none is named, the first column is scaled as the published rates of the same kind are: what moves
all weights by 1/3 and 1/5 (full), what adds few parameters by 1/10 and 1/25 (LoRA). Importing this
needs no JAX.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SIZES = (22.6e6, 110e6, 7e9)  # parameters of the models that columns are of: MiniLM, BERT-base, 7B
FAR = 10  # times above or below, from where a rate that is given is worth a warning
OPTIMIZERS = {  # AdamW's rates times these
    "adamw": 1.0,
    "lion": 0.2,  # 3 to 10 times smaller (Chen et al. 2023, §5)
    "adafactor": 30.0,  # of a parameter's own size: 1e-3 for T5 (Raffel et al. 2020, §3.1.2)
}
TASKS = {"preference": 0.1}  # from a trained model, by DPO: Rafailov et al. 2023, B
OWN = "measured here, on classification"
SCALED = "scaled from a small model's, not measured"


@dataclass(frozen=True)
class Rates:
    """A method's rates.

    Attributes:
        by_size: at `SIZES`.
        source: of all but the first: whose they are; empty: scaled.
        measured: whether the first is.
    """

    by_size: tuple[float, float, float]
    source: str = ""
    measured: bool = True

    def source_at(self, size: int) -> str:
        """Where the rate of a model of that size is from, by the nearer column."""
        if self.measured and size**2 < SIZES[0] * SIZES[1]:
            return OWN
        return f"published: {self.source}" if self.source else SCALED

    def at(self, size: int) -> float:
        """Between the columns by the logarithms, with two digits; beyond them the last ones."""
        x, points = math.log(max(size, 1)), [math.log(size) for size in SIZES]
        values = [math.log(rate) for rate in self.by_size]
        for low in range(len(points) - 1):
            if x <= points[low + 1]:
                part = max(x - points[low], 0) / (points[low + 1] - points[low])
                x = values[low] + part * (values[low + 1] - values[low])
                return float(f"{math.exp(x):.2g}")
        return self.by_size[-1]


def _moving(rate: float) -> Rates:
    return Rates((rate, rate / 3, rate / 5))


def _adding(rate: float) -> Rates:
    return Rates((rate, rate / 10, rate / 25))


LORA = "Hu et al. 2022, table 9: RoBERTa-base; Dettmers et al. 2023, table 9: 7B"
RATES: Mapping[str, Rates] = {
    "full": Rates((1e-4, 3e-5, 2e-5), "Devlin et al. 2019, A.3; Touvron et al. 2023, §3.1"),
    "gradual_unfreezing": _moving(1e-4),
    "galore": _moving(3e-4),
    "layerwise_lr_decay": _moving(3e-4),
    "lisa": _moving(3e-4),
    "regex": Rates((3e-4, 1e-4, 6e-5), measured=False),
    "top_k": _moving(7e-4),
    "head": Rates((1.5e-2, 1e-2, 4e-3), "Kopiczko et al. 2024: heads beside VeRA"),
    "bitfit": _adding(3e-3),
    "layer_norm": _adding(1.5e-3),
    "lora": Rates((5e-3, 5e-4, 2e-4), LORA),
    "dora": Rates((5e-3, 5e-4, 2e-4), "as LoRA's"),
    "qlora": Rates((5e-4, 3e-4, 2e-4), "all linear layers; Dettmers et al. 2023, table 9"),
    "rslora": _adding(1.5e-3),
    "pissa": _adding(1.5e-3),
    "olora": _adding(1.5e-3),
    "lora_plus": _adding(1e-3),
    "lora_fa": _adding(1.5e-2),
    "adalora": Rates((1.5e-2, 1e-3, 5e-4), "Zhang et al. 2023: DeBERTa-v3-base"),
    "loha": _adding(5e-3),
    "lokr": _adding(5e-3),
    "oft": _adding(5e-3),
    "vera": Rates((3e-2, 1e-2, 4e-3), "Kopiczko et al. 2024"),
    "ia3": Rates((3e-2, 1e-2, 3e-3), "Liu et al. 2022: T-Few, 3B and 11B"),
    "houlsby": Rates((3e-3, 3e-4, 1e-4), "Houlsby et al. 2019, §3.2"),
    "pfeiffer": Rates((1.5e-3, 1e-4, 1e-4), "Pfeiffer et al. 2021"),
    "adapter_drop": _adding(1.5e-3),
    "parallel": _adding(1.5e-3),
    "scaled_parallel": _adding(1.5e-3),
    "adapter_fusion": _adding(5e-4),
    "compacter": _adding(5e-3),
    "compacter_pp": _adding(5e-3),
    "reft": Rates((5e-3, 1e-3, 9e-4), "Wu et al. 2024: LoReFT"),
    "mam": _adding(5e-4),
    "unipelt": _adding(1.5e-3),
    "prefix_tuning": Rates((3e-2, 1e-2, 5e-3), "PEFT's guides: 1e-2 for T5-large"),
    "prompt_tuning": Rates((3e-2, 3e-2, 3e-2), "PEFT's guides: 3e-2 for BLOOMZ-560M"),
    "p_tuning": _adding(1e-2),
    "new": Rates((1e-3, 6e-4, 1.2e-4), "Brown et al. 2020, table 2.1: from scratch", False),
}
OTHER = Rates((1e-3, 3e-4, 1e-4), "a method that is not in the table")


def rates_of(method: Mapping[str, Any], new: bool = False) -> tuple[str, Rates]:
    """What the rates are called, and they.

    Args:
        method: the `method` section of a configuration.
        new: whether the model starts from nothing.
    """
    name, over = method["name"], method.get("over")
    if over is not None and over["name"] != "lora":
        return rates_of(over, new)
    if name == "combination":
        parts = [{"name": part} if isinstance(part, str) else part for part in method["parts"]]
        return min(
            (rates_of(part, new) for part in parts), key=lambda candidate: candidate[1].by_size[0]
        )
    if new and name == "full":
        name = "new"
    return name, RATES.get(name, OTHER)


def table() -> dict[str, str]:
    """Method → its rates and where all but the first are from, for people to read."""
    rows = {}
    for name, rates in RATES.items():
        listed = ", ".join(f"{rate:.2g}" for rate in rates.by_size)
        rows[name] = f"{listed:<25}{rates.source_at(int(SIZES[-1]))}"
    return rows
