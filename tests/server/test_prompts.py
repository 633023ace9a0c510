"""From conversations to prompts."""

import asyncio
from pathlib import Path

from residency.engine.text import ChatTemplate, load_tokenizer
from residency.server.prompts import Prompts
from residency.server.requests import FunctionDefinition, Tool, UserMessage
from residency.spec import open_checkpoint

PHI = (
    "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message %}"
    "<|tool|>{{ message['tools'] }}<|/tool|>{% endif %}{{ message['content'] }}{% endfor %}"
)


def test_a_template_that_reads_tools_of_the_systems_message_finds_them_there(small_gguf: Path) -> None:
    tokenizer = load_tokenizer(open_checkpoint(small_gguf))
    prompts = Prompts(tokenizer, ChatTemplate(source=PHI), vocabulary=tokenizer.vocabulary)
    tool = Tool(type="function", function=FunctionDefinition(name="weather", parameters={}))
    tokens = asyncio.run(prompts.of_chat([UserMessage(role="user", content="Is it warm?")], [tool]))
    prompts.close()
    text = tokenizer.decode(tokens)
    assert text.startswith("<|tool|>[{") and '"weather"' in text and text.endswith("<|/tool|>Is it warm?")
