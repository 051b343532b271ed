"""Several adapters on one base, each with a strength that may change between two tokens.

    h = base(x) + Σ strength_i · (adapted_i(x) - base(x))

Loading reads a file; switching, enabling and disabling only change strengths. The base is never loaded
again, and merging keeps the base's own tensors, so that taking it back gives them bit for bit. What hangs
beside the layers (a prefix, bottleneck adapters, parameters trained whole) has no strength: it is on or off.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from core.errors import AdapterError
from core.lora.adapter_file import AdapterFile
from core.lora.attach import load_adapter
from core.lora.extra import ModelExtra, extras, take_out_extras
from core.lora.mixed import MixedLayer, merged_weight


class AdapterSet:
    """The adapters of one model, by name.

    Args:
        model: a frozen base without adapters; its modules are wrapped while adapters are here.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._strengths: dict[str, float] = {}
        self._files: dict[str, AdapterFile] = {}
        self._layers: dict[str, MixedLayer] = {}
        self._extras: dict[str, list[ModelExtra]] = {}  # what hangs beside the layers, by the adapter's name
        self._kept: dict[str, nn.Parameter] = {}  # the base's own weights, while merged ones are in their places

    @property
    def names(self) -> list[str]:
        """The loaded adapters, in the order of loading."""
        return list(self._files)

    @property
    def strengths(self) -> dict[str, float]:
        """The adapters that count, with their strengths."""
        return {name: value for name, value in self._strengths.items() if value != 0.0}

    def file(self, name: str) -> AdapterFile:
        """What was read for an adapter."""
        return self._files[name]

    def load(self, name: str, folder: Path) -> AdapterFile:
        """Read an adapter from the disk; it does not count until it is given a strength.

        Raises:
            AdapterError: it does not fit the model, or is damaged; the set is then as it was.
        """
        self._require_unmerged()
        assert name not in self._files, f"there is an adapter {name}"
        self._take_off()
        try:
            before = dict(self.model.named_modules())
            file = load_adapter(folder, self.model)
            beside = extras(self.model)
            take_out_extras(self.model)
            for place, module in list(self.model.named_modules()):
                if place in before and module is not before[place]:
                    layer = self._layers.setdefault(place, MixedLayer(before[place], self._strengths))
                    layer.adapted[name] = module
                    self._put(place, before[place])
        finally:
            self._put_on()
        self._files[name], self._extras[name] = file, beside
        return file

    def drop(self, name: str) -> None:
        """Forget an adapter and free its memory."""
        self._require_unmerged()
        self._take_off()
        del self._files[name], self._extras[name]
        self._strengths.pop(name, None)
        for place, layer in list(self._layers.items()):
            layer.adapted.pop(name, None)
            if not layer.adapted:
                del self._layers[place]
        self._put_on()

    def use(self, strengths: Mapping[str, float]) -> None:
        """Let exactly these adapters count, with these strengths; takes microseconds.

        Raises:
            AdapterError: two of them have a part in the same place beside the layers; nothing is changed then.
        """
        self._require_unmerged()
        assert set(strengths) <= set(self._files), "an adapter must be loaded before it is used"
        names = [name for name, value in strengths.items() if value != 0.0]
        self._require_room(names)
        rehang = [extra for name in names for extra in self._extras[name]] != self._hanging()
        if rehang:
            self._take_off()
        self._strengths.clear()
        self._strengths.update(strengths)
        if rehang:
            self._put_on()

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, the model answers as its base alone."""
        self._require_unmerged()
        before = dict(self._strengths)
        hanging = self._hanging()
        self._strengths.clear()
        for extra in hanging:
            extra.enabled = False
        try:
            yield
        finally:
            self._strengths.update(before)
            for extra in hanging:
                extra.enabled = True

    def close(self) -> None:
        """Take everything off the model; the base is as it was."""
        self.unmerge()
        self._take_off()
        self._layers.clear()
        self._files.clear()
        self._extras.clear()
        self._strengths.clear()

    # --- merged in memory ------------------------------------------------------------------

    @torch.no_grad()
    def merge(self) -> None:
        """Put the weighted changes into the base's weights: no extra work at each token.

        Raises:
            AdapterError: a change that is not one of a weight, a quantised base, or numbers that are not finite;
                nothing is merged then.
        """
        self._require_unmerged()
        if self._hanging():
            raise AdapterError("What hangs beside the layers (a prefix, bottleneck adapters, parameters trained whole) "
                               "can not be merged in memory.")
        merged = {}
        for place, layer in self._layers.items():
            active = layer.active()
            if active:
                merged[place] = merged_weight(place, layer.base, active)
        for place, weight in merged.items():
            layer = self._layers[place]
            own = layer.base.weight
            assert isinstance(own, nn.Parameter)  # as merged_weight has seen
            self._kept[place], layer.merged = own, True
            layer.base.weight = nn.Parameter(weight, requires_grad=False)

    def unmerge(self) -> None:
        """Put the base's own tensors back, bit for bit."""
        for place, weight in self._kept.items():
            self._layers[place].base.weight, self._layers[place].merged = weight, False
        self._kept.clear()

    @property
    def merged(self) -> bool:
        """True between `merge` and `unmerge`."""
        return bool(self._kept)

    # --- modules in and out ----------------------------------------------------------------

    def _require_unmerged(self) -> None:
        assert not self.merged, "unmerge first"

    def _put(self, place: str, module: nn.Module) -> None:
        parent, _, child = place.rpartition(".")
        setattr(self.model.get_submodule(parent), child, module)

    def _take_off(self) -> None:
        for extra in self._hanging():
            extra.take_out()
        for place, layer in self._layers.items():
            self._put(place, layer.base)

    def _put_on(self) -> None:
        for place, layer in self._layers.items():
            self._put(place, layer)
        for extra in self._hanging():  # last: its rows of single tokens stand before what others make of a layer
            extra.hang()

    def _hanging(self) -> list[ModelExtra]:
        return [extra for name in self.strengths for extra in self._extras[name]]

    def _require_room(self, names: list[str]) -> None:
        seen: dict[tuple[str, str], str] = {}
        for name in names:
            for extra in self._extras[name]:
                other = seen.setdefault((extra.place, extra.child_name), name)
                if other != name:
                    raise AdapterError(f"The adapters in {self._files[other].path} and {self._files[name].path} both "
                                       f"have a {extra.child_name.strip('_') or 'part'} beside the layers; only one of "
                                       "them can count.", "Take one of them away.")
