"""What every table of the run file is made of."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_DTYPE_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def _short_dtype(value: Any) -> Any:
    return _DTYPE_NAMES.get(value, value) if isinstance(value, str) else value


Dtype = Annotated[Literal["auto", "fp32", "bf16"], BeforeValidator(_short_dtype)]
SaveDtype = Annotated[Literal["fp32", "bf16", "fp16"], BeforeValidator(_short_dtype)]


def option(default: Any, title: str, description: str, *, group: str = "", unit: str = "",
           more: bool = False, **limits: Any) -> Any:
    """A config field: its default, words, limits and place in the form, in one declaration."""
    extra = {"group": group, "unit": unit, "more": more}
    return Field(default, title=title, description=description, json_schema_extra=extra, **limits)


class Section(BaseModel):
    """A frozen table of run.toml that refuses unknown names."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
