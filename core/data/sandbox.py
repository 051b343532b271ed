"""Chat templates are programs of strangers: they render in a sandbox with limits on time and on text.

Jinja's own sandbox keeps a template away from the interpreter, but lets it loop or grow without
end. Here every loop, call and concatenation passes a meter. The names a template may use are
those that transformers offers, except that the date is a fixed one, so that the same rows come
out of the same data on every day.
"""

import datetime
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_format, do_indent
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

RENDER_SECONDS = 5.0
TEXT_LIMIT = 256 * 2**20  # characters that one rendering may make
TEMPLATE_LIMIT = 2**20  # characters of the template itself
FIXED_DATE = datetime.datetime(2024, 7, 26)
_WIDTH_LIMIT = 10_000
_WIDTH_METHODS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})


class TemplateRefused(Exception):
    """The template raised, is broken, or went beyond its limits. The text is one plain line."""


class Template:
    """One compiled chat template.

    Raises:
        TemplateRefused: it can not be compiled.
    """

    def __init__(self, source: str, variables: Mapping[str, Any]) -> None:
        if len(source) > TEMPLATE_LIMIT:
            raise TemplateRefused("the chat template is too long")
        self.source = source
        self._variables = dict(variables)
        self._environment = _Environment()
        try:
            tree = _Metered().visit(self._environment.parse(source))
            code = self._environment.compile(tree)
            self._template = jinja2.Template.from_code(self._environment, code, self._environment.make_globals(None))
        except (jinja2.TemplateError, RecursionError, SyntaxError, MemoryError) as error:
            raise TemplateRefused(_line(error)) from None

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = (),
               *, generation_prompt: bool = False) -> str:
        """The conversation as text.

        Raises:
            TemplateRefused: the template refuses these messages, fails, or takes too long.
        """
        meter = self._environment.meter
        meter.start()
        parts = []
        try:
            for part in self._template.generate(
                    messages=messages, tools=list(tools) or None, documents=None,
                    add_generation_prompt=generation_prompt, **self._variables):
                meter.add(len(part))
                parts.append(part)
        except TemplateRefused:
            raise
        except (jinja2.TemplateError, RecursionError, ArithmeticError, LookupError, TypeError, ValueError,
                AttributeError, MemoryError) as error:
            raise TemplateRefused(_line(error)) from None
        return "".join(parts)


def _line(error: BaseException) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return words[:300].rstrip(".")


class _Meter:
    """Counts what one rendering costs."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self._deadline = time.monotonic() + RENDER_SECONDS
        self._characters = self._ticks = 0

    def tick(self) -> None:
        self._ticks += 1
        if self._ticks % 64 == 0 and time.monotonic() > self._deadline:
            raise TemplateRefused(f"it ran for more than {RENDER_SECONDS:g} seconds")

    def add(self, characters: int) -> None:
        self._characters += characters
        if self._characters > TEXT_LIMIT:
            raise TemplateRefused(f"it makes more than {TEXT_LIMIT // 2**20} million characters")


class _Metered(NodeTransformer):
    """Puts a tick into every loop and macro, and the meter into every `~`."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802 -- jinja's name
        self.generic_visit(node)
        node.body.insert(0, _call("tick", [], node.lineno))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:  # noqa: N802
        self.generic_visit(node)
        node.body.insert(0, _call("tick", [], node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return nodes.Call(nodes.EnvironmentAttribute("joined"), node.nodes, [], None, None, lineno=node.lineno)


def _call(name: str, arguments: list[nodes.Expr], line: int) -> nodes.ExprStmt:
    call = nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None, lineno=line)
    return nodes.ExprStmt(call, lineno=line)


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's words; here it renders what is inside."""

    tags = {"generation"}  # noqa: RUF012 -- jinja's interface

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with a meter on loops, calls and growing texts."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.meter = _Meter()
        for name in ("lipsum", "cycler", "joiner"):
            self.globals.pop(name, None)
        self.globals.update(raise_exception=_raise, strftime_now=_date, dict=_dictionary, namespace=_Names)
        self.filters["tojson"] = self._to_json
        self.filters["join"] = self._join
        self.filters["replace"] = self._replace
        self.filters["format"] = self._format
        self.filters["indent"] = _indent
        for name in ("center", "wordwrap", "xmlattr", "urlize", "pprint", "batch", "slice", "random"):
            self.filters.pop(name)  # they grow without limit or differ from run to run; no template needs them

    def tick(self) -> str:
        self.meter.tick()
        return ""

    def joined(self, *parts: Any) -> str:
        texts = [str(part) for part in parts]
        self.meter.add(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.meter.tick()
        if operator == "+" and type(left) is str and type(right) is str:  # nearly all that templates do
            self.meter.add(len(left) + len(right))
            return left + right
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, str | list | tuple) and isinstance(times, int):
                    self.meter.add(len(many) * max(0, times))
        elif operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            self.meter.add(len(left) + len(right))
        elif operator == "**" and (not isinstance(right, int) or abs(right) > 64):
            raise TemplateRefused("it uses a power that is too large")
        elif operator == "%" and isinstance(left, str):
            _check_pattern(left)
        if isinstance(left, int) and isinstance(right, int) and max(abs(left), abs(right)) > 2**63:
            raise TemplateRefused("it uses a number that is too large")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        self.meter.tick()
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str):
            if name in _WIDTH_METHODS and any(isinstance(a, int) and a > _WIDTH_LIMIT for a in args):
                raise TemplateRefused("it pads a text too far")
            if name == "replace" and len(args) >= 2:
                return self._replace(owner, *args)
            if name == "join" and args:
                return self._join(args[0], owner)
        return super().call(context, obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Called for every method; those of texts named format are checked."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_pattern(str(getattr(value, "__self__", "")))
        return wrapped

    def _join(self, values: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        items = [value if attribute is None else self.getitem(value, attribute) for value in values]
        texts = [str(item) for item in items]
        self.meter.add(sum(map(len, texts)) + len(d) * len(texts))
        return str(d).join(texts)

    def _replace(self, s: Any, old: str, new: str, count: int | None = None) -> str:
        text = str(s)
        self.meter.add(len(text) + text.count(old) * max(0, len(new) - len(old)))
        return text.replace(old, new, -1 if count is None else count)

    def _format(self, value: Any, *args: Any, **kwargs: Any) -> str:
        _check_pattern(str(value))
        return do_format(value, *args, **kwargs)

    def _to_json(self, value: Any, ensure_ascii: bool = False, indent: int | None = None,
                 separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
        if isinstance(indent, int) and indent > 64:
            raise TemplateRefused("it indents too far")
        text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        self.meter.add(len(text))
        return text


def _check_pattern(pattern: str) -> None:
    """Refuse a format that asks for a width of thousands, or for a width from elsewhere."""
    if re.search(r"\d{4,}|\*|:[^{}]*\{", pattern):
        raise TemplateRefused("it formats text with a width that is not allowed here")


def _indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    if width > _WIDTH_LIMIT if isinstance(width, int) else len(width) > _WIDTH_LIMIT:
        raise TemplateRefused("it indents too far")
    return do_indent(s, width, first, blank)


class _Names(Namespace):
    """`namespace()` without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _public(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _public(name)
        super().__setitem__(name, value)


def _public(name: str) -> None:
    if str(name).startswith("_"):
        raise jinja2.exceptions.SecurityError(f"the name {name!r} is not allowed")


def _raise(message: str) -> None:
    raise jinja2.TemplateError(str(message))


def _date(pattern: str) -> str:
    if len(pattern) > 100 or re.search(r"%\d", pattern):
        raise TemplateRefused("it formats the date in an unusual way")
    return FIXED_DATE.strftime(pattern)


def _dictionary(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)
