"""What is trained beside the low-rank updates: biases, whole modules, rows of new tokens.

Plain Python from the module table, so that the form, the estimate and the training choose the same.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from core.config import LoraConfig, LowRankConfig, PatternedConfig
from core.config.section import Section
from core.errors import AdapterError
from core.patterns import end_match
from core.records import ModuleInfo
from core.targets import keeps_tied, matches_suffix

ROWS_KEY = "token_adapter.trainable_tokens_delta"
Told = tuple[str, str, str]  # field, message, hint


@dataclass(frozen=True)
class Whole:
    """A parameter that is trained whole: its module and its own name there. `shared_with` is the embedding's
    parameter where both go on sharing one tensor."""

    module: str
    parameter: str
    shape: tuple[int, ...]
    shared_with: str = ""

    @property
    def name(self) -> str:
        """Its name in the model."""
        return f"{self.module}.{self.parameter}"


def trained_whole(modules: Sequence[ModuleInfo], targets: Sequence[ModuleInfo],
                  adapter: Section) -> list[Whole]:
    """The parameters that are trained whole, in the model's order.

    Raises:
        AdapterError: a name that matches nothing, or a module that is adapted as well.
    """
    if not isinstance(adapter, LowRankConfig):
        return []
    saved = _saved_modules(modules, adapter)
    adapted = {module.name for module in targets}
    both = next((module.name for module in saved if module.name in adapted), None)
    if both:
        raise AdapterError(f"{both} is both adapted and trained whole.", "Name it in one of the two only.")
    names = {module.name for module in saved}
    found = []
    for module in modules:
        for parameter, shape in module.tensors:
            bias = parameter == "bias" and (
                adapter.bias == "all" or (adapter.bias == "lora_only" and module.name in adapted))
            if module.name in names or bias:
                shared = parameter == "weight" and bool(module.tied_to) and module.tied_to in names
                found.append(Whole(module.name, parameter, shape,
                                   f"{module.tied_to}.weight" if shared and keeps_tied(adapter) else ""))
    return found


def _saved_modules(modules: Sequence[ModuleInfo], adapter: LowRankConfig) -> list[ModuleInfo]:
    for name in adapter.modules_to_save:
        if not any(_is_in(module.name, name) for module in modules):
            raise AdapterError(f"The module {name!r} to be trained whole is not in this model.",
                               f"It has: {', '.join(sorted({module.kind for module in modules}))}.")
    saved = [module for module in modules if any(_is_in(module.name, name) for name in adapter.modules_to_save)]
    if not keeps_tied(adapter):
        return saved
    names = {module.name for module in saved}
    tied = {name for module in modules if module.tied_to and {module.name, module.tied_to} & names
            for name in (module.name, module.tied_to)}
    return [module for module in modules if module.name in names | tied]


def _is_in(module: str, name: str) -> bool:
    """True if `module` is what `name` means, or lies inside of it."""
    parts = module.split(".")
    return any(matches_suffix(".".join(parts[:end]), name) for end in range(1, len(parts) + 1))


def token_places(modules: Sequence[ModuleInfo], adapter: Section) -> list[ModuleInfo]:
    """The embedding, and the output head where it has a tensor of its own, whose rows of new tokens are trained.

    Raises:
        AdapterError: one of them is adapted or trained whole as well.
    """
    if not isinstance(adapter, PatternedConfig) or not adapter.new_tokens:
        return []
    places = [module for module in modules
              if module.is_input_embedding or (module.is_output_head and not module.tied_to)]
    if not any(module.is_input_embedding for module in places):
        raise AdapterError("This model has no embedding to which tokens could be added.", "Leave the new tokens out.")
    return places


def beside_shapes(modules: Sequence[ModuleInfo], targets: Sequence[ModuleInfo],
                  adapter: Section) -> dict[str, tuple[int, ...]]:
    """Shape of every such tensor by its name in adapter_model.safetensors. Raises AdapterError as above."""
    adapted = {module.name for module in targets}
    shapes: dict[str, tuple[int, ...]] = {}
    for whole in trained_whole(modules, targets, adapter):
        own = "base_layer." if whole.module in adapted else ""
        shapes[f"base_model.model.{whole.module}.{own}{whole.parameter}"] = whole.shape
    assert isinstance(adapter, LowRankConfig) or not shapes
    for place in token_places(modules, adapter):
        width = place.tensors[0][1][-1]
        assert isinstance(adapter, PatternedConfig)
        shapes[f"base_model.model.{place.name}.{ROWS_KEY}"] = (len(adapter.new_tokens), width)
    return shapes


def beside_parameters(modules: Sequence[ModuleInfo], targets: Sequence[ModuleInfo], adapter: Section) -> int:
    """How many numbers are trained beside the updates. Raises AdapterError as above."""
    shared = sum(math.prod(whole.shape) for whole in trained_whole(modules, targets, adapter) if whole.shared_with)
    return sum(math.prod(shape) for shape in beside_shapes(modules, targets, adapter).values()) - shared


def pattern_told(targets: Sequence[ModuleInfo], adapter: Section) -> Told | None:
    """(field, message, hint) for a rank or alpha by name that can not be meant; None where all can."""
    if not isinstance(adapter, PatternedConfig):
        return None
    for field, pattern in (("rank_pattern", adapter.rank_pattern), ("alpha_pattern", adapter.alpha_pattern)):
        for key in pattern:
            try:
                found = any(end_match(key, module.name) for module in targets)
            except AdapterError as error:
                return field, error.message, error.hint
            if not found:
                return (field, f"{key!r} matches none of the target layers.",
                        "Write the end of a module's name, or a regular expression of it.")
    return None


def beside_problems(modules: Sequence[ModuleInfo], targets: Sequence[ModuleInfo],
                    adapter: Section) -> Iterator[Told]:
    """What keeps these options from working, with the field."""
    if not isinstance(adapter, LowRankConfig):
        return
    try:
        whole = trained_whole(modules, targets, adapter)
    except AdapterError as error:
        yield ("adapter.modules_to_save", error.message, error.hint)
        return
    if adapter.bias != "none" and not any(each.parameter == "bias" for each in whole):
        where = "no layer of this model has" if adapter.bias == "all" else "none of the target layers has"
        yield ("adapter.bias", f"There are no biases to train: {where} one.", "Set it to none.")
    if not isinstance(adapter, PatternedConfig):
        return
    try:
        places = token_places(modules, adapter)
    except AdapterError as error:
        yield ("adapter.new_tokens", error.message, error.hint)
        return
    if places and adapter.init == "eva":
        yield ("adapter.init", "EVA looks at the rows before the new tokens have a place in the model.",
               "Choose kaiming, or leave the new tokens out.")
    if len(set(adapter.new_tokens)) < len(adapter.new_tokens) or not all(map(str.strip, adapter.new_tokens)):
        yield ("adapter.new_tokens", "A new token is empty or named twice.", "Name each of them once.")
    taken = {module.name for module in targets} | {each.module for each in whole if each.parameter == "weight"}
    # a head that shares the embedding has no rows of its own, but an update of it would lie below theirs, where
    # no other program looks for it
    tied = [module for module in targets if module.tied_to] if places else []
    for place in [*places, *tied]:
        if place.name in taken:
            yield ("adapter.new_tokens", f"{place.name} is changed as a whole already, so the rows of new tokens can "
                   "not be trained alone.", "Leave it out of the target layers and of what is trained whole.")
    yield from _tying_problems(modules, targets, adapter)


def _tying_problems(modules: Sequence[ModuleInfo], targets: Sequence[ModuleInfo],
                    adapter: PatternedConfig) -> Iterator[Told]:
    if not adapter.ensure_weight_tying:
        return
    if not any(module.tied_to for module in modules):
        yield ("adapter.ensure_weight_tying", "This model's output head does not share the embedding's weights.",
               "Switch it off.")
    embedding = next((module for module in targets if module.is_input_embedding), None)
    if embedding is not None and not isinstance(adapter, LoraConfig):
        yield ("adapter.ensure_weight_tying", f"With it the head's update is that of {embedding.name}, an embedding, "
               "which this method can not adapt.", "Switch it off, or choose the method LoRA.")
