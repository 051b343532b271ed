"""LoRA on the experts of a mixture, whose weights are three-dimensional parameters.

transformers keeps the linear maps of all experts of a layer in one module: `gate_up_proj`
(experts, 2 inner, width) and `down_proj` (experts, width, inner). Every expert gets an A and a B of its own:

    h_e = W_e x + s B_e A_e x

Only the experts that the router has chosen are computed; no sum W + s B A is ever formed.
The file holds what PEFT's `target_parameters` holds; see `core.lora.expert_layout`.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import AdapterError
from core.lora.fused import fused_lora_linear
from core.lora.method import AdapterModule

_FIRST = ("gate_up_proj", "up_proj")
_LAST = "down_proj"
_PROBE_TOKENS = 8


class ExpertMatrix(AdapterModule):
    """The trained update of one three-dimensional parameter.

    Args:
        experts: how many there are.
        shape: (in, out) of one expert's map.
        rank: inner dimension r of every expert.
        alpha: the update is scaled by alpha / rank.
        generator: draws A, uniform after Kaiming with a = sqrt(5), as the paper's code does.
        device: where A and B lie.

    Shapes: lora_a (experts, r, in), lora_b (experts, out, r), in fp32.
    """

    def __init__(self, experts: int, shape: tuple[int, int], rank: int, alpha: float,
                 generator: torch.Generator | None = None, device: torch.device | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = shape
        self.scale = alpha / rank
        self.enabled = True
        bound = 1 / math.sqrt(self.in_features)
        lora_a = torch.empty(experts, rank, self.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_a = nn.Parameter(lora_a.to(device))
        self.lora_b = nn.Parameter(torch.zeros(experts, self.out_features, rank, device=device))

    @property
    def experts(self) -> int:
        """How many experts there are."""
        return self.lora_a.shape[0]

    @property
    def rank(self) -> int:
        """Inner dimension r of every expert."""
        return self.lora_a.shape[1]

    @torch.no_grad()
    def delta(self) -> Tensor:
        """scale B A of every expert, (experts, out, in) in fp32."""
        return self.scale * (self.lora_b.float() @ self.lora_a.float())

    def extra_repr(self) -> str:
        """What `print(model)` shows of this update."""
        return f"experts={self.experts}, rank={self.rank}, scale={self.scale:g}"


class ExpertsLayer(AdapterModule):
    """Wraps the module that holds a layer's experts. The updates are its children, named as the parameters.

    Input: hidden states (tokens, width), the chosen experts (tokens, k) and their shares (tokens, k);
    output (tokens, width).
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.first = next(name for name in _FIRST if isinstance(getattr(base, name, None), nn.Parameter))

    def matrices(self) -> dict[str, ExpertMatrix]:
        """The updates by the name of their parameter, in the order in which the base has these."""
        return {name: child for name in (self.first, _LAST) for child in [self._modules.get(name)]
                if isinstance(child, ExpertMatrix)}

    def weight(self, name: str) -> Tensor:
        """The frozen parameter `name` as (experts, out, in)."""
        weight = self.base.get_parameter(name)
        return weight.transpose(1, 2) if getattr(self.base, "is_transposed", False) else weight

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The chosen experts' outputs, added by their shares."""
        if not any(matrix.enabled for matrix in self.matrices().values()):
            return self.base(hidden_states, top_k_index, top_k_weights)
        return self.adapted(hidden_states, top_k_index, top_k_weights)

    def adapted(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """`forward` with the updates: every expert sees its tokens together."""
        tokens, chosen = top_k_index.shape
        order = torch.argsort(top_k_index.reshape(-1), stable=True)  # pairs of token and expert, expert by expert
        first, last = _Maps(self, self.first), _Maps(self, _LAST)
        counts = torch.bincount(top_k_index.reshape(-1), minlength=first.experts).tolist()
        outputs = []
        for expert, places in enumerate(order.split(counts)):
            if len(places):
                inner = first(expert, hidden_states[places // chosen])
                outputs.append(last(expert, self._bend(inner)))
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        shared = torch.cat(outputs)[back] * top_k_weights.reshape(-1, 1)
        return shared.view(tokens, chosen, -1).sum(dim=1).to(hidden_states.dtype)

    def _bend(self, inner: Tensor) -> Tensor:
        """What an expert does between its two maps, by its own code."""
        base = self.base
        apply = getattr(base, "_apply_gate" if getattr(base, "has_gate", True) else "act_fn")
        return apply(inner)


@torch.no_grad()
def joined_experts(base: nn.Module, layers: Sequence[tuple[ExpertsLayer, float]]) -> ExpertsLayer:
    """One layer on `base` whose updates are the sums of those of several, each times its strength."""
    joined = ExpertsLayer(base)
    for name, (experts, inputs, outputs) in expert_parameters(base).items():
        held = [(layer.matrices()[name], strength) for layer, strength in layers if name in layer.matrices()]
        if held:
            first = held[0][0].lora_a
            matrix = ExpertMatrix(experts, (inputs, outputs), 1, 1.0, device=first.device)
            matrix.lora_a = nn.Parameter(torch.cat([each.lora_a for each, _ in held], dim=1), requires_grad=False)
            matrix.lora_b = nn.Parameter(torch.cat([strength * each.scale * each.lora_b for each, strength in held],
                                                   dim=2), requires_grad=False)
            joined.add_module(name, matrix)
    return joined.eval()


class _Maps:
    """One linear map of every expert, with its update, for one pass. (unbind, so that the gradients of all
    experts are put together once.)"""

    def __init__(self, layer: ExpertsLayer, name: str) -> None:
        self.weight = layer.weight(name)
        self.bias = getattr(layer.base, f"{name}_bias", None) if getattr(layer.base, "has_bias", False) else None
        matrix = layer.matrices().get(name)
        self.matrix = matrix if matrix is not None and matrix.enabled else None
        self.lora_a = self.matrix.lora_a.unbind() if self.matrix is not None else ()
        self.lora_b = self.matrix.lora_b.unbind() if self.matrix is not None else ()

    @property
    def experts(self) -> int:
        """How many there are."""
        return self.weight.shape[0]

    def __call__(self, expert: int, x: Tensor) -> Tensor:
        """(n, in) -> (n, out), in the dtype of the base."""
        weight, bias = self.weight[expert], None if self.bias is None else self.bias[expert]
        if self.matrix is None:
            return F.linear(x, weight, bias)
        lora_a, lora_b, scale = self.lora_a[expert], self.lora_b[expert], self.matrix.scale
        if x.dtype == weight.dtype == lora_a.dtype and torch.is_grad_enabled():
            return fused_lora_linear(x, weight, bias, lora_a, lora_b, scale)
        update = F.linear(F.linear(x.to(lora_a.dtype), lora_a), lora_b)  # in fp32 over a 16-bit base
        return F.linear(x, weight, bias) + (scale * update).to(x.dtype)


def expert_parameters(module: nn.Module) -> dict[str, tuple[int, int, int]]:
    """(experts, in, out) of every parameter of `module` that holds a map of every expert; empty for other modules."""
    if not hasattr(module, "num_experts") or getattr(module, "has_post_expert_norm", False):
        return {}
    names = [*[name for name in _FIRST if name in module._parameters][:1], _LAST]
    found = {}
    for name in names:
        parameter = module._parameters.get(name)
        if parameter is None or parameter.ndim != 3 or len(names) < 2:
            return {}
        experts, out_features, in_features = parameter.shape
        if getattr(module, "is_transposed", False):
            out_features, in_features = in_features, out_features
        found[name] = (experts, in_features, out_features)
    return found


def wrap_expert(model: nn.Module, name: str, rank: int, alpha: float,
                generator: torch.Generator | None = None) -> ExpertMatrix:
    """Put an update on the parameter called `name` ("….experts.down_proj").

    Raises:
        AdapterError: there is no such parameter, or its experts are computed in a way that is not known here.
    """
    place, _, parameter = name.rpartition(".")
    try:
        module = model.get_submodule(place)
    except AttributeError:
        raise AdapterError(f"The model has no module {place}.", "The adapter belongs to another model.") from None
    base = module.base if isinstance(module, ExpertsLayer) else module
    shapes = expert_parameters(base)
    if parameter not in shapes:
        raise AdapterError(f"{name} does not hold the weights of experts.", "The adapter belongs to another model.")
    if not isinstance(module, ExpertsLayer):
        module = ExpertsLayer(base)
        _require_same(module, place)
        parent, _, child = place.rpartition(".")
        setattr(model.get_submodule(parent), child, module)
    experts, in_features, out_features = shapes[parameter]
    matrix = ExpertMatrix(experts, (in_features, out_features), rank, alpha, generator,
                          module.weight(parameter).device)
    module.add_module(parameter, matrix)
    return matrix


@torch.no_grad()
def _require_same(layer: ExpertsLayer, name: str) -> None:
    """Without an update our way of computing the experts must give what theirs gives."""
    weight = layer.weight(layer.first)
    if weight.device.type == "meta":
        return
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_PROBE_TOKENS, weight.shape[2], generator=generator).to(weight.device, weight.dtype)
    chosen = min(2, weight.shape[0])
    index = torch.stack([torch.randperm(weight.shape[0], generator=generator)[:chosen]
                         for _ in range(_PROBE_TOKENS)]).to(weight.device)
    share = torch.rand(_PROBE_TOKENS, chosen, generator=generator).to(weight.device, weight.dtype)
    expected = layer.base(x, index, share).float()
    difference = (layer.adapted(x, index, share).float() - expected).norm()
    if not difference <= (1e-4 if weight.dtype == torch.float32 else 2e-2) * expected.norm():
        raise AdapterError(f"{name} computes its experts in a way that is not known here.",
                           "Choose target layers without the experts.")


def expert_matrices(model: nn.Module) -> dict[str, ExpertMatrix]:
    """The updates of experts in `model` by the name of their parameter, in the model's order."""
    return {f"{name}.{parameter}": matrix for name, module in model.named_modules()
            if isinstance(module, ExpertsLayer) for parameter, matrix in module.matrices().items()}


def base_parameter(name: str) -> str:
    """Where the frozen parameter called `name` lies while it has an update."""
    module, _, parameter = name.rpartition(".")
    return f"{module}.base.{parameter}"


def remove_experts(model: nn.Module) -> None:
    """Take every ExpertsLayer out again; the base is as it was."""
    for name, module in list(model.named_modules()):
        if isinstance(module, ExpertsLayer):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.base)
