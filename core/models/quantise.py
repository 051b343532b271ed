"""The frozen base in 4 or 8 bits: NF4 with double quantisation (arXiv 2305.14314), or int8 by rows.

bitsandbytes quantises; it is imported only when a quantised base is asked for. The products are
computed here, on weights that are dequantised for a moment: so training, chat and the dequantised
merge all see exactly the same weights, on every device and in every mode.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from core.config import AdapterConfig, QLoraConfig
from core.errors import AdapterError, ModelError

ORIGIN_KEY = "quantisation"  # in workbench.json
_INT8_STEPS = 127
_COMPUTED_IN = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Quantisation:
    """How the base's linear layers are held.

    `double`: the scales of the 4-bit blocks are quantised once more. `computed_in`: the number type
    that the weights are read in and dequantised to.
    """

    kind: Literal["nf4", "int8"]
    double: bool
    computed_in: torch.dtype = torch.float32

    @property
    def words(self) -> str:
        """In words, for people."""
        if self.kind == "int8":
            return "int8"
        return "NF4 with double quantisation" if self.double else "NF4"

    def to_plain(self) -> dict[str, Any]:
        """For workbench.json."""
        name = next(name for name, dtype in _COMPUTED_IN.items() if dtype == self.computed_in)
        return {"kind": self.kind, "double": self.double, "computed_in": name}


def quantisation_of(adapter: AdapterConfig, computed_in: torch.dtype) -> Quantisation | None:
    """What the table [adapter] asks for; None where the base is not quantised."""
    if not isinstance(adapter, QLoraConfig):
        return None
    return Quantisation(adapter.quantisation, adapter.double_quantisation and adapter.quantisation == "nf4",
                        computed_in)


def quantisation_in(origin: Mapping[str, Any]) -> Quantisation | None:
    """How the base was held while the adapter with this workbench.json was trained; None: not quantised.

    Raises:
        AdapterError: an entry that can not be understood.
    """
    values = origin.get(ORIGIN_KEY)
    if values is None:
        return None
    try:
        kind, double, computed_in = values["kind"], values["double"], _COMPUTED_IN[values["computed_in"]]
    except (KeyError, TypeError):
        kind, double, computed_in = "", False, torch.float32
    if kind not in ("nf4", "int8") or not isinstance(double, bool):
        raise AdapterError("The adapter's workbench.json does not say how its base was quantised.",
                           "Bring back the file that training wrote.")
    return Quantisation(kind, double, computed_in)


def bitsandbytes() -> Any:
    """The package, imported now.

    Raises:
        ModelError: it is not installed or can not be used here.
    """
    try:
        import bitsandbytes as package  # noqa: PLC0415 - large, and needed for quantised bases alone
    except ImportError as error:
        raise ModelError("A quantised base needs the package bitsandbytes, which can not be imported "
                         f"({' '.join(str(error).split())[:200]}).",
                         "Install it with: pip install bitsandbytes") from error
    except (OSError, RuntimeError) as error:
        raise ModelError("The package bitsandbytes does not work on this machine: "
                         f"{' '.join(str(error).split())[:200]}.", "Install it again, or choose LoRA.") from error
    return package


def loading_config(quantisation: Quantisation) -> BitsAndBytesConfig:
    """How transformers quantises each weight as soon as it is read. Raises ModelError without bitsandbytes."""
    bitsandbytes()
    if quantisation.kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                              bnb_4bit_use_double_quant=quantisation.double,
                              bnb_4bit_compute_dtype=quantisation.computed_in)


class QuantisedLinear(nn.Linear):
    """A frozen linear layer whose weight is held in 4 or 8 bits.

    Args:
        layer: a loaded layer of bitsandbytes.
        computed_in: the number type of the dequantised weight.

    `weight` is the packed one, `bias` as it was. `from_conv1d`: it stands for a Conv1D.
    """

    def __init__(self, layer: Any, computed_in: torch.dtype) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        weight = layer.weight
        self.computed_in = computed_in
        self.from_conv1d = getattr(layer, "source_cls", nn.Linear) is Conv1D
        self.bias = layer.bias
        self.quant_state = getattr(weight, "quant_state", None)  # of 4-bit blocks
        scales = None if self.quant_state is not None else weight.SCB
        self.register_buffer("scales", scales, persistent=False)  # (out,), of int8 rows
        # as a plain tensor: what bitsandbytes' own parameters do in `to` is done already
        self.weight = nn.Parameter(weight.data.as_subclass(Tensor), requires_grad=False)

    @torch.no_grad()
    def dequantised(self) -> Tensor:
        """The weight, (out, in)."""
        if self.quant_state is not None:
            return bitsandbytes().functional.dequantize_4bit(self.weight.data, self.quant_state)
        return _from_int8(self.weight.data, cast(Tensor, self.scales), self.computed_in)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out); differentiable in the input and the bias."""
        result = cast(Tensor, _QuantisedProduct.apply(input.to(self.computed_in), self)).to(input.dtype)
        return result if self.bias is None else result + self.bias.to(result.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> "QuantisedLinear":
        """Moving to another device takes the scales along; the packed numbers change their type for nobody."""
        moved = super()._apply(fn, recurse)
        if self.quant_state is not None:
            self.quant_state.to(self.weight.device)
        return moved


class _QuantisedProduct(torch.autograd.Function):
    """x Wᵀ that keeps neither x nor the dequantised W for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantisedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dequantised())

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return grad_outputs[0] @ ctx.layer.dequantised(), None


def take_over(model: PreTrainedModel, computed_in: torch.dtype) -> PreTrainedModel:
    """Put a QuantisedLinear in the place of every layer of bitsandbytes in a loaded model.

    Raises:
        ModelError: there is none, as in Falcon, whose linear layers transformers leaves as they are.
    """
    package = bitsandbytes()
    kinds = (package.nn.Linear4bit, package.nn.Linear8bitLt)
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]
    if not found:
        raise ModelError("This kind of model can not be held in 4 or 8 bits: none of its layers would be quantised.",
                         "Choose LoRA.")
    for name, module in found:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, QuantisedLinear(module, computed_in))
    return model


def quantised_names(model: PreTrainedModel) -> list[str]:
    """The modules of an unquantised model (a skeleton will do) that loading would quantise."""
    kept = [*get_keys_to_not_convert(model), *(model._keep_in_fp32_modules or [])]
    return [name for name, module in model.named_modules()
            if (type(module) is nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, kept)]


@torch.no_grad()
def rounded_by(weight: Tensor, quantisation: Quantisation, transposed: bool = False) -> Tensor:
    """A weight as the training saw it: quantised as loading does, and dequantised, in `computed_in`.

    Args:
        weight: (out, in), or (in, out) if `transposed`, in the number type of the file.
        quantisation: how.
        transposed: as a Conv1D stores it; the result has the same orientation.
    """
    package = bitsandbytes()
    rows = (weight.T if transposed else weight).to(quantisation.computed_in).contiguous()
    if quantisation.kind == "int8":
        packed = package.nn.Int8Params(rows, requires_grad=False).to(rows.device)
        found = _from_int8(packed.data, packed.SCB, quantisation.computed_in)
    else:
        packed = package.nn.Params4bit(rows, requires_grad=False, quant_type="nf4",
                                       compress_statistics=quantisation.double).to(rows.device)
        found = package.functional.dequantize_4bit(packed.data, packed.quant_state)
    return (found.T if transposed else found).contiguous()


def _from_int8(numbers: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """int8 rows times their scales / 127, as bitsandbytes dequantises them."""
    return numbers.to(dtype).mul_((scales * (1.0 / _INT8_STEPS))[:, None])
