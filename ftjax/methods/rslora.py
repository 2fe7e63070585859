"""rsLoRA (Kalajdzievski 2023): LoRA scaled by α/√r."""

from dataclasses import dataclass

from ftjax.methods.lora import Lora


@dataclass(frozen=True)
class RsLora(Lora):
    """y = x W + b + (α/√r) · dropout(x) A B (Kalajdzievski 2023, theorem 3.2).

    LoRA's α/r lets the update and its gradient vanish as the rank grows; α/√r keeps both of the
    same size, so that a higher rank learns more. Equal to `peft`'s use_rslora. r (in + out)
    parameters a projection, as LoRA. For high ranks, with the learning rate of a low one.
    """

    @property
    def scale(self) -> float:
        return self.alpha / self.rank**0.5
