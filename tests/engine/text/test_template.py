"""Chat templates write conversations, and do nothing else."""

from typing import Any

import pytest

from residency.engine.text import ChatTemplate
from residency.errors import ModelError

USER = [{"role": "user", "content": "Hi"}]


def render(source: Any, messages: Any = USER, **options: Any) -> Any:
    return ChatTemplate(source=source, bos_token="<s>", eos_token="</s>").render(messages, **options)


def test_blocks_leave_no_blank_lines() -> None:
    assert render("{% for m in messages %}\n  {% if true %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}") == "Hi\n"


def test_the_generation_prompt_is_on_unless_asked_off() -> None:
    source = "{% if add_generation_prompt %}go{% endif %}"
    assert (render(source), render(source, add_generation_prompt=False)) == ("go", "")


def test_json_is_not_escaped_for_html() -> None:
    assert render("{{ tools[0] | tojson }}", tools=[{"name": "<é>"}]) == '{"name": "<é>"}'


def test_loops_can_be_left() -> None:
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"


def test_generation_blocks_are_written_as_they_are() -> None:
    assert render("{% generation %}{{ bos_token }}{% endgeneration %}") == "<s>"


def test_a_templates_refusal_is_one_sentence_with_its_reason() -> None:
    with pytest.raises(ModelError, match="cannot write these messages: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ 'a' * 999999999 }}",
        "{{ [0] * 999999999 }}",
        "{{ 9 ** 999999999 }}",
        "{{ 'a'.ljust(999999999) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ 'a' | center(999999999) }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}aaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}{% endfor %}",
        "{% if %}",
        "{{ nothing.at.all }}",
    ],
)
def test_a_hostile_or_broken_template_is_a_model_error(source: Any) -> None:
    with pytest.raises(ModelError):
        render(source)
