"""A server on a small model, listening on a port of its own in a thread."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from residency.engine.engine import Engine
from residency.engine.service import Service
from residency.planner import Plan
from residency.server.app import App, Limits
from residency.server.model import Model
from residency.server.protocol import BoundedProtocol
from residency.server.serving import bound_socket, listen


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that listens."""

    url: str
    service: Service
    engine: Engine
    app: App


@contextmanager
def running_server(plan: Plan, *, limits: Limits | None = None, queue_limit: int = 64) -> Iterator[Running]:
    """Serves `plan` as the model "small" until the block is left."""
    with (
        Engine.open(plan) as engine,
        Service(engine, queue_limit=queue_limit) as service,
        Model.of(engine, names=("small",)) as model,
    ):
        app = App(service, model, plan, limits or Limits())
        bound = bound_socket("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(app.application, http=BoundedProtocol, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        try:
            while not server.started:
                time.sleep(0.005)
            yield Running(url=listen(bound), service=service, engine=engine, app=app)
        finally:
            server.should_exit = True
            thread.join()
