"""The optional tables [prefix] and [bottleneck], which stand beside [adapter] or alone."""

from typing import Literal

from core.config.section import Section, option


class PrefixConfig(Section):
    """Prefix-Tuning: trained keys and values before every row, in every layer (arXiv 2101.00190)."""

    length: int = option(
        20, "Prefix length", "Trained virtual tokens that every layer sees before the row; they use up context.",
        group="Prefix", unit="tokens", ge=1, le=1024)
    start: Literal["activations", "random"] = option(
        "activations", "Start from",
        "Activations: what the model makes of the first training rows, as the paper advises. The network has its own.",
        group="Prefix", more=True)
    rate: float = option(
        10.0, "Learning rate times", "The prefix learns so many times faster than the rest; it needs larger steps.",
        group="Prefix", more=True, gt=0.0, le=1000.0)
    projection: bool = option(
        False, "Through a small network", "The prefix is computed by a small network while it is trained.",
        group="Prefix", more=True)
    projection_size: int = option(
        512, "Network width", "Inner width of that network.", group="Prefix", more=True, ge=1, le=16384)


class BottleneckConfig(Section):
    """Adapters: small networks with a narrow middle inside every layer (arXiv 1902.00751)."""

    size: int = option(
        64, "Bottleneck size", "Width of the narrow middle.", group="Bottleneck adapters", ge=1, le=16384)
    activation: Literal["gelu", "relu", "silu"] = option(
        "gelu", "Activation", "The bend between the way down and the way up.",
        group="Bottleneck adapters", more=True)
    placement: Literal["both", "attention", "mlp"] = option(
        "both", "After", "Behind attention and MLP as in the paper, or behind one of them.",
        group="Bottleneck adapters", more=True)
    first_layer: int = option(
        0, "First layer", "Layers below this one get none; training is then faster.",
        group="Bottleneck adapters", more=True, ge=0, le=10000)
    last_layer: int | None = option(
        None, "Last layer", "Layers above this one get none; empty means the top.",
        group="Bottleneck adapters", more=True, ge=0, le=10000)
