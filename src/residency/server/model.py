"""The model that is served, as requests see it: its names, its text, its context, and what answers can be held to."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

from residency.engine.engine import Engine
from residency.engine.text import ChatTemplate, Tokenizer
from residency.server.grammar import ANY_OBJECT, Constraint, Grammars
from residency.server.problems import Problem, Refused
from residency.server.prompts import Prompts
from residency.server.tool_forms import tool_form


class Model:
    """Use it in one event loop, and in a `with` statement."""

    def __init__(
        self,
        *,
        names: tuple[str, ...],
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        vocabulary: int,
        context_tokens: int,
    ) -> None:
        """names: by which clients may ask for it, the first of them its own. vocabulary: of the logits."""
        self.names = names
        self.context_tokens = context_tokens
        self.prompts = Prompts(tokenizer, template, vocabulary=vocabulary)
        self.tool_form = None if template is None else tool_form(template.source)
        self._grammars = Grammars(tokenizer, vocabulary)
        self._thread = ThreadPoolExecutor(1, "residency-grammar")

    @staticmethod
    def of(engine: Engine, *, names: tuple[str, ...]) -> "Model":
        """The engine's model."""
        return Model(
            names=names,
            tokenizer=engine.tokenizer,
            template=engine.chat_template,
            vocabulary=engine.vocabulary,
            context_tokens=engine.plan.context_tokens,
        )

    def __enter__(self) -> "Model":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def require_name(self, name: str | None) -> None:
        """Refused unless it is one of the model's."""
        if name is not None and name not in self.names:
            message = f"The model '{name[:200]}' is not served here; ask for '{self.names[0]}'."
            raise Refused(Problem(status=404, message=message, param="model", code="model_not_found"))

    def prepare_grammars(self) -> None:
        """Sort the vocabulary for schemas now: it takes up to a second, in which nothing else would be computed."""
        if self.prompts.tokenizer.eos_ids:
            self._grammars.of_schema(ANY_OBJECT)

    async def compiled(self, wanted: Mapping[str, Any] | str | None) -> Constraint | None:
        """A JSON schema, or a grammar's text, as what an answer is held to; None for None. Refused as Grammars does."""
        if wanted is None:
            return None
        compile_ = self._grammars.of_lark if isinstance(wanted, str) else self._grammars.of_schema
        running = asyncio.get_running_loop().run_in_executor(self._thread, compile_, wanted)  # type: ignore[arg-type]
        return await running

    def close(self) -> None:
        """End the threads."""
        self.prompts.close()
        self._thread.shutdown(cancel_futures=True)
