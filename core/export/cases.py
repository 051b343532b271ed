"""An export and what it must equal: what a receipt is about."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from core.export.keys import ModelKeys
from core.export.plan import MergePlan
from core.lora.extra_files import Extras
from core.lora.peft_keys import Contents, LoraPair

_EXACT = frozenset({"F32", "F64"})


@dataclass(frozen=True)
class MergedCase:
    """A merged export and what it must equal."""

    base: Path
    adapter: Path
    pairs: dict[str, LoraPair]
    export: Path
    plan: MergePlan
    keys: ModelKeys
    what: str = "base + adapter"  # in words
    has_adapter: bool = True  # False where `base` is the fine-tuned model itself

    @property
    def is_rounded(self) -> bool:
        """The files hold 16-bit numbers."""
        return any(tensor.spec.dtype not in _EXACT for tensor in self.plan.tensors if tensor.parameter)

    @property
    def arithmetic(self) -> torch.dtype:
        """In which the versions are run.

        Base + adapter and the merged fp32 files are the same sum in another order, which alone moves the
        logits of a small model by 1e-4 in fp32 arithmetic. Where numbers were rounded, both sides are
        computed in the same order from the same numbers, and fp32 gives the same on both.
        """
        return torch.float32 if self.is_rounded else torch.float64


@dataclass(frozen=True)
class AdapterCase:
    """An exported adapter and what it must equal.

    `contents` are what is beside the pairs in the same file. `rounded` says what the export must hold where that is
    not simply `pairs` in its number types. `extras` and `exported_extras` are what stands beside the pairs or alone,
    and must be the same but for the number types.
    """

    base: Path
    adapter: Path
    pairs: dict[str, LoraPair]
    export: Path
    exported: dict[str, LoraPair]
    rounded: dict[str, LoraPair] | None = None
    extras: Extras = field(default_factory=Extras)
    exported_extras: Extras = field(default_factory=Extras)
    contents: Contents = field(default_factory=Contents)
    exported_contents: Contents = field(default_factory=Contents)

    @property
    def is_rounded(self) -> bool:
        """The exported adapter has other numbers than the run's."""
        whole, exported = self.contents.beside(), self.exported_contents.beside()
        if any(not torch.equal(exported[name].float(), old.float()) for name, old in whole.items() if name in exported):
            return True
        beside = self.exported_extras.tensors
        if any(not torch.equal(beside[name].float(), old.float()) for name, old in self.extras.tensors.items()
               if name in beside):
            return True
        return any(not torch.equal(new.float(), old.float()) for name, pair in self.exported.items()
                   for new, old in zip(pair.tensors(), self.pairs[name].tensors(), strict=True))

    @property
    def arithmetic(self) -> torch.dtype:
        """In which the versions are run: both sides are computed in the same order."""
        return torch.float32
