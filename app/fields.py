"""One editor for one config field: made from the field's type, limits and words in `core.config`."""

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from app.choice_fields import (
    BoolEditor,
    ChoiceEditor,
    MappingEditor,
    OnlyChoice,
    PartsEditor,
    PathsEditor,
    TextEditor,
)
from app.field_editor import FieldEditor
from app.number_fields import FloatEditor, IntEditor, OptionalIntEditor


def make_editor(info: FieldInfo) -> FieldEditor:
    """The editor that fits a field's type.

    Raises:
        TypeError: a type that no editor shows; a new kind of field needs one here.
    """
    kind = _bare(info.annotation)
    if get_origin(kind) is Literal:
        choices = list(get_args(kind))
        return ChoiceEditor(info, choices) if len(choices) > 1 else OnlyChoice(info, choices[0])
    members = [_bare(member) for member in _union_members(kind)]
    if bool in members:
        return BoolEditor(info)
    if members == [int]:
        return OptionalIntEditor(info) if type(None) in get_args(kind) else IntEditor(info)
    if float in members:
        return FloatEditor(info)
    if str in members:
        return TextEditor(info)
    return _editor_of_many(info, kind)


def _editor_of_many(info: FieldInfo, kind: Any) -> FieldEditor:
    """The editor of a list or a mapping."""
    if get_origin(kind) is dict:
        return MappingEditor(info, get_args(kind)[1])
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        return PartsEditor(info, get_args(item)) if get_origin(item) is Literal else PathsEditor(info)
    raise TypeError(f"no editor for a field of type {kind}")


def _bare(annotation: Any) -> Any:
    return _bare(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation


def _union_members(kind: Any) -> list[Any]:
    if get_origin(kind) in (Union, types.UnionType):
        return [member for member in get_args(kind) if member is not type(None)]
    return [kind]
