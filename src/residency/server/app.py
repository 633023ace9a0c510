"""The application: routes, and what each answers."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from residency.engine.service import Service
from residency.planner import Plan
from residency.records import to_data
from residency.server.desk import ENDPOINTS, Desk
from residency.server.gate import Gate
from residency.server.intake import Intake, body_bytes_for
from residency.server.metrics import CONTENT_TYPE, Metrics
from residency.server.model import Model
from residency.server.openapi import document
from residency.server.problems import Problem
from residency.server.requests import DetokenizeRequest, TokenizeRequest
from residency.server.responses import Health, ModelCard
from residency.server.streams import DirectBodies, send_events, send_json, while_connected


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What clients may do."""

    api_keys: tuple[str, ...] = ()  # none: everybody may ask
    cors_origins: tuple[str, ...] = ()
    max_requests: int = 256  # open at a time
    body_bytes: int | None = None  # of one request; None: by the context


class App:
    """The server's state, and an ASGI `application` over it, for one event loop."""

    def __init__(self, service: Service, model: Model, plan: Plan, limits: Limits) -> None:
        self._service = service
        self._model = model
        self._plan = plan
        self._metrics = Metrics(plan, service.metrics)
        self._desk = Desk(service, model, self._metrics)
        self._intake = Intake(body_bytes=limits.body_bytes or body_bytes_for(plan.context_tokens))
        self._started = int(time.time())
        self.is_ending = False  # set it when the server takes no more requests
        layers = [
            Middleware(CORSMiddleware, allow_origins=limits.cors_origins, allow_methods=["*"], allow_headers=["*"]),
            Middleware(Gate, api_keys=limits.api_keys, max_requests=limits.max_requests),
        ]
        routed = Starlette(routes=self._routes(), middleware=layers, exception_handlers={HTTPException: _http_problem})
        self.application = DirectBodies(routed)

    def _routes(self) -> Sequence[Route]:
        posted = {"/tokenize": self._tokenize, "/detokenize": self._detokenize}
        got = {
            "/v1/models": self._models,
            "/v1/models/{model:path}": self._one_model,
            "/tokenizer_info": self._tokenizer_info,
            "/health": self._health,
            "/metrics": self._metrics_text,
            "/plan": self._plan_data,
            "/memory": self._memory,
            "/openapi.json": self._document,
        }
        return [
            *(Route(path, _Generation(self._desk, self._intake, path), methods=["POST"]) for path in ENDPOINTS),
            *(Route(path, endpoint, methods=["POST"]) for path, endpoint in posted.items()),
            *(Route(path, endpoint, methods=["GET"]) for path, endpoint in got.items()),
        ]

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card(name) for name in self._model.names]})

    async def _one_model(self, request: Request) -> Response:
        name = request.path_params["model"]
        self._model.require_name(name)
        return JSONResponse(self._card(name))

    def _card(self, name: str) -> ModelCard:
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "residency",
            "max_model_len": self._plan.context_tokens,
        }

    async def _tokenize(self, request: Request) -> Response:
        async with self._intake.body(request) as body:
            asked = TokenizeRequest.model_validate_json(body)
            self._model.require_name(asked.model)
            prompts = self._model.prompts
            if asked.messages is not None:
                tokens = await prompts.of_chat(asked.messages, asked.tools)
            else:
                tokens = await prompts.of_text(asked.prompt or "", add_special=asked.add_special_tokens)
            return JSONResponse(
                {"tokens": tokens, "count": len(tokens), "max_model_len": self._plan.context_tokens},
            )

    async def _detokenize(self, request: Request) -> Response:
        async with self._intake.body(request) as body:
            asked = DetokenizeRequest.model_validate_json(body)
            self._model.require_name(asked.model)
            tokens = self._model.prompts.checked(asked.tokens)
            return JSONResponse({"prompt": self._model.prompts.tokenizer.decode(tokens, skip_special=False)})

    async def _tokenizer_info(self, request: Request) -> Response:
        return JSONResponse(self._model.prompts.info())

    async def _health(self, request: Request) -> Response:
        failed = self._service.failure is not None
        health: Health = {"status": "failed" if failed else "ending" if self.is_ending else "ok"}
        return JSONResponse(health, 200 if health["status"] == "ok" else 503)

    async def _metrics_text(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)

    async def _plan_data(self, request: Request) -> Response:
        return JSONResponse(to_data(self._plan))

    async def _memory(self, request: Request) -> Response:
        """Asking the operating system takes milliseconds."""
        return JSONResponse(await asyncio.to_thread(self._service.memory))

    async def _document(self, request: Request) -> Response:
        return JSONResponse(document())


class _Generation:
    """An endpoint that generates: an ASGI application, for its answer may be a stream."""

    def __init__(self, desk: Desk, intake: Intake, endpoint: str) -> None:
        self._desk = desk
        self._intake = intake
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            async with self._intake.body(request) as body:
                await while_connected(self._answer(body, request, send), receive)
        except ClientDisconnect:
            request.state.log["disconnected"] = True

    async def _answer(self, body: bytes, request: Request, send: Send) -> None:
        job = await self._desk.job(self._endpoint, body, request.state.log)
        if job.streams:
            await send_events(send, request.state.bodies, partial(job.stream, self._desk.generator))
        else:
            await send_json(send, await job.whole(self._desk.generator))


async def _http_problem(request: Request, error: Exception) -> Response:
    """What the router says, in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:200]}: {error.detail}; see /openapi.json for what there is."
    return JSONResponse(Problem(status=error.status_code, message=message).body, error.status_code, error.headers)
