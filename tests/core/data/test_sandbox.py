"""A stranger's template can neither run on, nor fill the memory, nor reach the interpreter."""

import time

import pytest
from traced import traced

from core.data import sandbox
from core.data.sandbox import Template, TemplateRefused

MESSAGES = [{"role": "user", "content": "hello"}]

ATTACKS = [
    "{{ 'A' * 900000000 }}",
    "{{ 900000000 * 'A' }}",
    "{% set x = ['A'] * 900000000 %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% set r = range(99999) %}{% for i in r %}{% for j in r %}{% for k in r %}{% endfor %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}AAAAAAAAAAAAAAAA{% endfor %}{% endfor %}",
    "{% set ns = namespace(x='AAAAAAAA') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='AAAAAAAA') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x='AAAAAAAA') %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
    "{% set ns = namespace(x='AA') %}{% for i in range(60) %}{% set ns.x = ns.x.replace('A', 'AA') %}{% endfor %}",
    "{% set ns = namespace(x='AA') %}{% for i in range(60) %}{% set ns.x = ns.x | replace('A', 'AA') %}{% endfor %}",
    "{% set ns = namespace(x=['a']) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ 'x'.center(999999999) }}",
    "{{ 'x'.rjust(999999999) }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '%*d' % (999999999, 1) }}",
    "{{ '{:999999999}'.format(1) }}",
    "{{ '{:{}}'.format(1, 999999999) }}",
    "{{ '%999999999d' | format(1) }}",
    "{{ 'x' | indent(999999999, true) }}",
    "{{ [1] | tojson(indent=999999999) }}",
    "{{ 'x' | center(999999999) }}",
    "{{ [1] | slice(999999999) | list }}",
    "{{ lipsum(9999) }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.append(1) }}",
    "{{ namespace(__class__=1) }}",
    "{{ cycler.__init__.__globals__ }}",
    "{% include 'x' %}",
    "{{ strftime_now('%999999999d') }}",
    "{{ 1 / 0 }}",
    "{{ messages[5].content + 1 }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "RENDER_SECONDS", 0.3)
    monkeypatch.setattr(sandbox, "TEXT_LIMIT", 10**6)


@pytest.mark.parametrize("source", ATTACKS)
def test_attacks_end_quickly_and_small(source):
    start = time.monotonic()
    text, refusal, peak = rendered(source)
    assert "<class" not in text and "__globals__" not in text and len(text) < 1000
    assert "\n" not in refusal
    assert time.monotonic() - start < 5
    assert peak < 60 * 10**6


def rendered(source: str) -> tuple[str, str, int]:
    """The text, or why there is none, and the peak of memory in bytes."""
    def render() -> tuple[str, str]:
        try:
            return Template(source, {}).render(MESSAGES), ""
        except TemplateRefused as error:
            return "", str(error)

    (text, refusal), peak = traced(render)
    return text, refusal, peak


def test_ordinary_template_language_works():
    source = (
        "{% generation %}{{ messages[0].content }}{% endgeneration %}|{{ messages | tojson }}|"
        "{{ ['a', 'b'] | join(', ') }}|"
        "{{ 'x-y'.replace('-', '+') }}|{{ 'a' ~ 1 ~ none }}|{{ '%02d' | format(7) }}|{{ 'q' * 3 }}|"
        "{{ 'a\nb' | indent(2) }}|"
        "{% for m in [1, 2, 3] %}{% if m == 2 %}{% continue %}{% endif %}{{ m }}{% endfor %}|{{ dict(a=1).a }}|"
        "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(messages | length) }}|{{ strftime_now('%d %b %Y') }}|"
        "{{ bos_token }}|{{ add_generation_prompt }}|{{ tools is none }}")
    text = Template(source, {"bos_token": "<s>"}).render(MESSAGES, generation_prompt=True)
    assert text == ('hello|[{"role": "user", "content": "hello"}]|a, b|x+y|a1None|07|qqq|a\n  b|13|1|<1>|26 Jul 2024|'
                    "<s>|True|True")


def test_non_ascii_json_stays_readable():
    assert Template("{{ messages | tojson }}", {}).render([{"content": "日本 <b>"}]) == '[{"content": "日本 <b>"}]'
