"""What every table of the run file is made of."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_DTYPE_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def _short_dtype(value: Any) -> Any:
    return _DTYPE_NAMES.get(value, value) if isinstance(value, str) else value


Dtype = Annotated[Literal["auto", "fp32", "bf16"], BeforeValidator(_short_dtype)]
SaveDtype = Annotated[Literal["fp32", "bf16", "fp16"], BeforeValidator(_short_dtype)]


def option(default: Any, title: str, description: str, *, group: str = "", unit: str = "",
           more: bool = False, choices_text: dict[str, str] | None = None, empty: str = "none", **limits: Any) -> Any:
    """A config field: its default, words, limits and place in the form, in one declaration.

    Args:
        default: its value where the file says nothing.
        title: its name for people.
        description: one sentence for people.
        group: heading in the form.
        unit: written behind the number.
        more: folded away at first.
        choices_text: words for people instead of a choice's own.
        empty: what stands in an empty field that may be empty.
        limits: pydantic's (ge, gt, le, lt).
    """
    extra = {"group": group, "unit": unit, "more": more, "choices_text": choices_text or {}, "empty": empty}
    return Field(default, title=title, description=description, json_schema_extra=extra, **limits)


class Section(BaseModel):
    """A frozen table of run.toml that refuses unknown names."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
