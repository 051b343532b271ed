"""Query, key and value alone where one layer holds all three: what is chosen, from the module table. Plain Python."""

from collections.abc import Sequence

from core.config import DoraConfig, LowRankConfig, PatternedConfig
from core.records import ModuleInfo

PARTS = ("q", "k", "v")
PARTS_KEY = "fused_parts"  # in workbench.json, where only some of them were adapted
FUSED_KINDS = frozenset({"c_attn", "qkv_proj", "query_key_value", "Wqkv"})


def chosen_parts(module: ModuleInfo, adapter: LowRankConfig) -> tuple[str, ...]:
    """The parts of `module` that are adapted, each with an A and B of its own; () where the layer is taken whole."""
    if module.qkv_rows is None or not isinstance(adapter, PatternedConfig) or adapter.fused_parts == PARTS:
        return ()
    return adapter.fused_parts


def part_rows(module: ModuleInfo, parts: Sequence[str]) -> list[int]:
    """How many outputs of `module` belong to each of its parts."""
    return [(module.qkv_rows or (0, 0, 0))[PARTS.index(part)] for part in parts]


def parts_problem(targets: Sequence[ModuleInfo], adapter: LowRankConfig) -> tuple[str, str, str] | None:
    """(field, message, hint) for what keeps the chosen parts from being adapted alone; None where nothing does."""
    if not isinstance(adapter, PatternedConfig) or adapter.fused_parts == PARTS:
        return None
    unknown = [module.name for module in targets
               if module.kind in FUSED_KINDS and module.qkv_rows is None and "cross" not in module.name]
    if unknown:
        return ("fused_parts",
                f"In what order {unknown[0]} holds query, key and value is not known for this kind of model.",
                "Choose all three, or other target layers.")
    if not any(chosen_parts(module, adapter) for module in targets):
        return None
    if isinstance(adapter, DoraConfig):
        return ("fused_parts", "DoRA is not offered for parts of fused layers.",
                "Choose q, k and v together, or the method LoRA.")
    if adapter.takes_from_base:
        return ("init", f"The start {adapter.init} is made for whole layers, not for parts of them.",
                "Choose q, k and v together, or the start kaiming.")
    return None


def parts_advice(targets: Sequence[ModuleInfo], adapter: LowRankConfig) -> tuple[str, str, str] | None:
    """(field, message, hint) where the choice of parts does not do what its words say; None where it does."""
    if not isinstance(adapter, PatternedConfig):
        return None
    fused = [module for module in targets if module.qkv_rows is not None]
    if adapter.fused_parts != PARTS and not fused:
        return ("fused_parts",
                "No target layer of this model holds query, key and value together, so this choice has no effect.",
                "Choose the projections by name among the target layers, such as q_proj or v_proj.")
    if adapter.fused_parts == PARTS and fused and adapter.target_modules == "q-v":
        return ("fused_parts", "Query, key and value are one layer in this model, so the key is adapted as well.",
                "Set this to q and v alone to leave the key as it is.")
    return None
