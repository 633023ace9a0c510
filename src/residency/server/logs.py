"""Logs as one JSON object a line, on standard error."""

import json
import logging
import sys
import time

logger = logging.getLogger("residency.server")


class JsonLines(logging.Formatter):
    """A record as {"time", "level", "event", ...}: its fields, and a traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without a newline inside it."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{moment}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def log(event: str, *, level: int = logging.INFO, error: BaseException | None = None, **fields: object) -> None:
    """One line. Of an `error` the traceback too: logs are for who runs the server."""
    logger.log(level, event, exc_info=error, extra={"fields": fields})


def log_to_stderr(level: int = logging.INFO) -> None:
    """Let the server's lines, and warnings of its libraries, go to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("residency.server", "residency.engine", "uvicorn.error", "asyncio"):
        chosen = logging.getLogger(name)
        chosen.handlers[:] = [handler]
        chosen.setLevel(level if name.startswith("residency") else logging.WARNING)
        chosen.propagate = False
