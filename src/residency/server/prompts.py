"""From what a client sent to a prompt's tokens, outside the event loop: long texts take a while."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from residency.engine.text import ChatTemplate, Tokenizer
from residency.errors import UsageError
from residency.server.requests import AssistantMessage, Content, Message, Tool, ToolMessage
from residency.server.responses import TokenizerInfo


class Prompts:
    """Writes prompts for one model. One thread does it: a tokenizer is not made for several."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None, *, vocabulary: int) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.vocabulary = vocabulary
        self._thread = ThreadPoolExecutor(1, "residency-text")

    async def of_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> list[int]:
        """The conversation as the model's template writes it. UsageError where it has none, ModelError where it
        refuses the messages.
        """
        return await self._in_thread(self._chat, messages, tools, variables or {})

    async def of_text(self, text: str, *, add_special: bool = True) -> list[int]:
        """The text's tokens."""
        return await self._in_thread(self._text, text, add_special)

    def checked(self, tokens: Sequence[int]) -> list[int]:
        """The tokens as they are; UsageError if the model does not have one of them."""
        for token in tokens:
            if token >= self.vocabulary:
                raise UsageError(f"the token {token} is not one of the model's {self.vocabulary}.")
        return list(tokens)

    def info(self) -> TokenizerInfo:
        """Of tokens that begin and end a text, and of chats."""
        eos_id = min(self.tokenizer.eos_ids, default=None)
        template = self.template
        return {
            "bos_token": self._text_of(self.tokenizer.bos_id),
            "eos_token": template.eos_token if template and template.eos_token else self._text_of(eos_id),
            "chat_template": None if template is None else template.source,
        }

    def _text_of(self, token: int | None) -> str | None:
        return None if token is None else self.tokenizer.decode([token], skip_special=False)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)

    async def _in_thread(self, write: Any, *arguments: object) -> list[int]:
        tokens: list[int] = await asyncio.get_running_loop().run_in_executor(self._thread, write, *arguments)
        if not tokens:
            raise UsageError("the prompt is empty; give at least one character.")
        return tokens

    def _text(self, text: str, add_special: bool) -> list[int]:
        return self.tokenizer.encode(text, add_special=add_special)

    def _chat(
        self, messages: Sequence[Message], tools: Sequence[Tool] | None, variables: Mapping[str, object]
    ) -> list[int]:
        if self.template is None:
            raise UsageError("this model has no chat template; send the text to /v1/completions.")
        written = [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in tools or ()]
        kept: dict[str, Any] = {name: value for name, value in variables.items() if name not in _OWN_NAMES}
        conversation = [_message(each) for each in messages]
        if written and _TOOLS_IN_MESSAGES in self.template.source:
            conversation = _with_tools(conversation, written)
        text = self.template.render(conversation, tools=written or None, **kept)
        return self.tokenizer.encode(text, add_special=False)


_TOOLS_IN_MESSAGES = "'tools' in message"  # Phi-4-mini's template reads them of the system's message


def _with_tools(conversation: Sequence[dict[str, Any]], tools: Sequence[object]) -> list[dict[str, Any]]:
    first, *rest = conversation
    if first["role"] != "system":
        first, rest = {"role": "system", "content": ""}, list(conversation)
    return [{**first, "tools": json.dumps(tools, ensure_ascii=False)}, *rest]


_OWN_NAMES = frozenset({"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"})


def _message(message: Message) -> dict[str, Any]:
    """As templates want it: text in one piece, arguments of calls as objects, "developer" as "system"."""
    role = "system" if message.role == "developer" else message.role
    written: dict[str, Any] = {"role": role, "content": _text_of(message.content)}
    if message.name is not None:
        written["name"] = message.name
    if isinstance(message, ToolMessage):
        written["tool_call_id"] = message.tool_call_id
    if isinstance(message, AssistantMessage) and message.tool_calls:
        written["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    return written


def _text_of(content: Content | None) -> str:
    if content is None:
        return ""
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def _arguments(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
