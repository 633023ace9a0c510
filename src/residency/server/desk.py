"""Where requests become jobs, whether they came over HTTP or from a file."""

from collections.abc import Awaitable, Callable
from typing import Any

from residency.server.chat import chat_job
from residency.server.completions import completion_job
from residency.server.generation import Generator, Submits
from residency.server.jobs import Job
from residency.server.model import Model
from residency.server.requests import ChatRequest, CompletionRequest, GenerationRequest
from residency.server.watch import Observer, Watch

Prepare = Callable[[Any, Model, Watch], Awaitable[Job]]
ENDPOINTS: dict[str, tuple[type[GenerationRequest], Prepare]] = {
    "/v1/chat/completions": (ChatRequest, chat_job),
    "/v1/completions": (CompletionRequest, completion_job),
}


class Desk:
    """Takes requests in for one model."""

    def __init__(self, service: Submits, model: Model, observer: Observer) -> None:
        self.model = model
        self.generator = Generator(service)
        self._observer = observer

    async def job(self, endpoint: str, body: bytes | str, log_fields: dict[str, Any]) -> Job:
        """The request in `body`, for one of the ENDPOINTS, ready to run. Raises what `problems` knows."""
        kind, prepare = ENDPOINTS[endpoint]
        watch = Watch(self._observer, log_fields)
        asked = kind.model_validate_json(body)
        self.model.require_name(asked.model)
        return await prepare(asked, self.model, watch)
