"""The table in the docs, from what the tests have measured."""

import platform
from importlib.metadata import version

from matrix import FAMILIES, METHODS

BOUNDS = {"ours to peft": 1e-5, "peft to ours": 1e-5, "gradients": 1e-6, "ten steps": 1e-5, "merged": 1e-6}
Found = dict[tuple[str, str, str], float]  # (measure, method, family) -> deviation
INTRODUCTION = {
    "ours to peft": "Logits of an adapter that we wrote, read by peft on an untouched base; largest difference, fp32.",
    "peft to ours": "Logits of an adapter that peft wrote, read by us; largest difference, fp32.",
    "gradients": "Gradients of one step: ‖ours - peft's‖ / ‖peft's‖ of the tensor where it is largest, in fp64. "
                 "A norm below 1e-8 of the largest (a key's bias, whose gradient is zero) counts as that much.",
    "gradients, fp32": "The same in fp32, where sums in another order differ by their rounding. No bound;",
    "ten steps": "Trained numbers after ten steps of AdamW at a rate of 1e-3; largest difference, fp32; in fp64 where "
                 "the next table has a larger number than the bound.",
    "ten steps, fp32": "The same in fp32 throughout. AdamW makes a whole step of a gradient that is nearly zero, so "
                       "there the rounding of a sum in another order may decide. No bound;",
    "merged": "Weights of the merged model; largest difference, fp32.",
}
TITLES = {"ours to peft": "Ours, read by peft", "peft to ours": "Peft's, read by us", "gradients": "Gradients",
          "gradients, fp32": "Gradients in fp32", "ten steps": "Ten optimizer steps",
          "ten steps, fp32": "Ten optimizer steps in fp32", "merged": "Merged weights"}


def table_text(found: Found) -> str:
    """docs/exactness.md."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("peft", "torch", "transformers", "bitsandbytes"))
    head = f"""# Exactness against peft

Each method that peft has too, on tiny random models of each family: the same base, the same numbers in all that is
trained, dropout 0, on the CPU. Written by `make exactness`; a table is written only if every cell kept its bound.

{versions}; Python {platform.python_version()}, {platform.machine()}.
"""
    return "\n".join([head, *[_section(measure, found) for measure in INTRODUCTION], _gaps()])


def _section(measure: str, found: Found) -> str:
    deviations = [deviation for (name, _, _), deviation in found.items() if name == measure]
    bound = f" Bound {BOUNDS[measure]:.0e}, " if measure in BOUNDS else " "
    largest = f"largest of {len(deviations)} cells {max(deviations, default=0.0):.1e}."
    lines = [f"## {TITLES[measure]}\n", f"{INTRODUCTION[measure]}{bound}{largest}\n",
             _row(["", *[family.title for family in FAMILIES.values()]]), _row(["---"] * (1 + len(FAMILIES)))]
    for name, method in METHODS.items():
        values = [found.get((measure, name, family)) for family in FAMILIES]
        if any(value is not None for value in values):
            lines.append(_row([method.title, *["" if value is None else _short(value) for value in values]]))
    return "\n".join(lines) + "\n"


def _short(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-") if value else "0"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _gaps() -> str:
    """Why a cell is empty."""
    lines = ["## Empty cells\n"]
    for method in METHODS.values():
        reasons: dict[str, list[str]] = {}
        for family in FAMILIES.values():
            reason = method.gap(family) or (f"merged: {gap}" if (gap := method.merge_gap(family)) else "")
            if reason:
                reasons.setdefault(reason, []).append(family.title)
        lines += [f"- {method.title} ({', '.join(titles)}): {reason}." for reason, titles in reasons.items()]
    lines.append("- QLoRA, gradients in fp64: its products are computed in fp32.")
    return "\n".join(lines) + "\n"
