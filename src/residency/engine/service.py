"""Many callers, one engine: a thread of its own runs the loop."""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType

from residency.engine.engine import Engine
from residency.engine.generation import FinishReason, GenerationOptions, TokenEvent
from residency.engine.kv_store import KvStoreSpace
from residency.engine.metrics import ServiceMetrics
from residency.engine.swap import SwapSpace
from residency.errors import QueueFullError, ServiceError, UsageError
from residency.scheduler import Admission, Batch

Listener = Callable[[Sequence[TokenEvent]], None]

_RECENT_STEPS = 20  # that averages over "of late" reach back
_LONGEST_RETRY_SECONDS = 60


@dataclass
class _Open:
    """A request that has not ended."""

    request_id: int
    prompt: Sequence[int]
    options: GenerationOptions
    listener: Listener
    open_answers: set[int]
    cached_tokens: int = 0

    def end(self, answer: int, reason: FinishReason, error: str | None) -> TokenEvent:
        """The event of an answer that ends without a token."""
        return TokenEvent(
            request_id=self.request_id,
            answer=answer,
            token=None,
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached_tokens,
            finish_reason=reason,
            error=error,
        )


class Service:
    """Answers requests of any thread. Use it in a `with` statement; until its end the engine is its alone.

    A listener is called in the service's thread with all events of a step or several at once, of all requests that it
    listens to, when the next step is about to be computed: it must be quick, and where it raises, the requests of these
    events are cancelled.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        queue_limit: int = 64,
        admission: Admission = "optimistic",
        swap: SwapSpace | None = None,
        store: KvStoreSpace | None = None,
        stream_interval_seconds: float = 0.0,
    ) -> None:
        """`queue_limit`: answers that may be open beyond those that the plan lets run at one time; `admission`: see
        Scheduler; `swap`: where what is preempted may wait; `store`: where prompts' pages are kept.

        `stream_interval_seconds`: how long a token may wait to be told with those after it, where steps are so quick:
        neither an answer's first nor its last, and none while prompts are computed.
        """
        if queue_limit < 0:
            raise UsageError(f"a queue cannot hold {queue_limit} requests; give 0 or more.")
        self._engine = engine
        self._queue_limit = queue_limit
        self._most_open = engine.plan.max_sequences + queue_limit
        self._loop = engine.new_loop(admission, swap, store)
        self._changed = threading.Condition()  # guards what follows
        self._open: dict[int, _Open] = {}
        self._submitted: list[_Open] = []
        self._cancelled: list[int] = []
        self._finished: list[tuple[int, int]] = []  # requests with one of their answers
        self._interval_seconds = stream_interval_seconds
        self._untold: list[TokenEvent] = []  # of the last steps
        self._untold_since = 0.0
        self._is_urgent = False  # what is untold
        self._ending = False
        self._failure: BaseException | None = None
        self._num_requests = self._num_refused = 0
        self._ended: Counter[str] = Counter()
        self._counts = self._loop.counts()
        self._step_seconds = self._last_step_seconds = self._recent_rate = 0.0
        self._thread = threading.Thread(target=self._run, name="residency-service", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Service":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End at once: what has not ended is cancelled. The engine stays open."""
        self.drain(0.0)

    @property
    def failure(self) -> BaseException | None:
        """Why the service has failed; None while it is well."""
        return self._failure

    def submit(self, prompt_ids: Sequence[int], options: GenerationOptions, listener: Listener) -> int:
        """Take a request in and give its number.

        QueueFullError where too many wait already, ContextError and BudgetError where it could never be answered,
        UsageError for tokens that the model does not have, ServiceError where the service has failed or is ending.
        """
        self._engine.check_tokens(prompt_ids)
        self._engine.check_tokens(options.sampling.logit_bias)
        self._loop.check(len(prompt_ids), options)
        with self._changed:
            self._require_service()
            num_open = sum(len(request.open_answers) for request in self._open.values())
            if num_open >= self._most_open:
                self._num_refused += 1
                seconds = self._retry_after_seconds
                raise QueueFullError(
                    f"{num_open} answers are running or waiting and no more may; try again in {seconds} s.",
                    retry_after_seconds=seconds,
                )
            request = _Open(self._num_requests, tuple(prompt_ids), options, listener, set(range(options.num_answers)))
            self._num_requests += 1
            self._open[request.request_id] = request
            self._submitted.append(request)
            self._changed.notify_all()
        return request.request_id

    def cancel(self, request_id: int) -> None:
        """End a request before the next step; nothing happens for one that has ended."""
        with self._changed:
            if request_id in self._open:
                self._cancelled.append(request_id)
                self._changed.notify_all()

    def finish(self, request_id: int, answer: int) -> None:
        """End one answer before the next step, for its caller has what he wanted; nothing happens for one that has
        ended. It must have begun.
        """
        with self._changed:
            if request_id in self._open and answer in self._open[request_id].open_answers:
                self._finished.append((request_id, answer))
                self._changed.notify_all()

    def drain(self, timeout_seconds: float) -> bool:
        """Take no more requests, finish those that are in, and end; whether all ended in time. Others are cancelled."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
            in_time = self._changed.wait_for(lambda: not self._open, timeout=timeout_seconds)
            self._cancelled.extend(self._open)
            self._changed.notify_all()
        self._thread.join()
        return in_time

    def metrics(self) -> ServiceMetrics:
        """Counts as of the last step."""
        with self._changed:
            rate = self._recent_rate if self._open else 0.0
            return ServiceMetrics(
                loop=self._counts,
                queued=self._counts.waiting + len(self._submitted),
                queue_limit=self._queue_limit,
                requests=self._num_requests,
                refused=self._num_refused,
                ended=dict(self._ended),
                step_seconds=self._step_seconds,
                last_step_seconds=self._last_step_seconds,
                compute_seconds=self._loop.compute_seconds,
                read_bytes_per_second=rate,
                bandwidth_share=rate / self._engine.plan.forecast.read_bytes_per_second,
                healthy=self._failure is None,
            )

    def memory(self) -> dict[str, object]:
        """The ledger: bytes of each class as planned and as they are, and the pages of the KV cache. Asks the operating
        system, which takes milliseconds.
        """
        plan, counts = self._engine.plan, self._counts
        measured = self._engine.measured_memory(self._loop)
        classes = ("weights", "kv_cache", "activations", "runtime")
        return {
            "budget_bytes": plan.budget_bytes,
            "classes": {
                name: {"planned_bytes": getattr(plan.memory, name), "measured_bytes": getattr(measured, name)}
                for name in classes
            },
            "planned_bytes": plan.memory.peak,
            "measured_bytes": measured.peak,
            "kv_cache": {
                "page_tokens": plan.page_tokens,
                "pages": counts.pages,
                "used_pages": counts.used_pages,
                "shared_pages": counts.shared_pages,
                "cached_pages": counts.cached_pages,
                "free_pages": counts.pages - counts.used_pages - counts.cached_pages,
                "used_bytes": counts.kv_used_bytes,
                "held_tokens": counts.kv_tokens,
            },
            "kv_store": {"pages": counts.kept_pages, "slots": counts.kept_slots},
        }

    @property
    def _retry_after_seconds(self) -> int:
        """When a place in the queue will be free, by how long the engine works for an answer."""
        seconds = self._step_seconds / max(1, sum(self._ended.values()))
        return max(1, min(_LONGEST_RETRY_SECONDS, math.ceil(seconds)))

    def _require_service(self) -> None:
        if self._failure is not None:
            raise ServiceError(f"the service has failed ({self._failure}); start it anew.")
        if self._ending:
            raise ServiceError("the service is ending and takes no more requests.")

    def _run(self) -> None:
        self._engine.stay()
        try:
            while self._take_orders():
                if self._loop.has_work:
                    self._step()
                    if not self._loop.has_work:
                        self._tell()
                elif self._loop.has_unsaved_pages:
                    self._loop.save_page()
                    with self._changed:
                        self._counts = self._loop.counts()
        except BaseException as error:  # whatever it is, nobody may wait for ever
            with self._changed:
                self._failure = error
            self._tell()
            self._end_all(list(self._open), "error", f"the service has failed: {error}")
        finally:
            self._loop.close()

    def _take_orders(self) -> bool:
        """Wait until there is something to do, and take in what was submitted and cancelled; False at the end."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._submitted
                    or self._cancelled
                    or self._finished
                    or self._loop.has_work
                    or self._loop.has_unsaved_pages
                    or (self._ending and not self._open)
                )
            )
            submitted, self._submitted = self._submitted, []
            cancelled, self._cancelled = self._cancelled, []
            finished, self._finished = self._finished, []
        if cancelled or finished:
            self._tell()
        with self._changed:
            for request in submitted:
                self._loop.submit(request.prompt, request.options, request_id=request.request_id)
            for request_id in cancelled:
                self._loop.cancel(request_id)
            for request_id, answer in finished:
                self._loop.cancel(request_id, answer)
            if submitted or cancelled or finished:
                self._counts = self._loop.counts()
        self._end_all(cancelled, "cancelled")
        for request_id, answer in finished:
            self._end(request_id, "stop", only=answer)
        return bool(self._open) or not self._ending

    def _step(self) -> None:
        started, read_before = time.perf_counter(), self._loop.read_bytes
        events = self._loop.step(self._tell_in_time)
        ended = time.perf_counter()
        seconds = ended - started
        rate = (self._loop.read_bytes - read_before) / seconds
        prompt_tokens = self._counts.prompt_tokens
        with self._changed:
            self._counts = self._loop.counts()  # who hears that an answer has ended finds its pages free
            self._last_step_seconds = seconds
            self._step_seconds += seconds
            self._recent_rate += (rate - self._recent_rate) / _RECENT_STEPS
        if not self._untold:
            self._untold_since = ended
        self._untold += events
        has_first = self._counts.prompt_tokens > prompt_tokens
        self._is_urgent = self._is_urgent or has_first or any(event.is_last for event in events)

    def _tell_in_time(self, batch: Batch) -> None:
        """Before a step: tell what has waited for so long that it cannot wait for this step, too."""
        waited_seconds = time.perf_counter() - self._untold_since + self._last_step_seconds
        is_long = batch.entries[-1].of_prompt
        if self._is_urgent or is_long or waited_seconds >= self._interval_seconds:
            self._tell()

    def _end_all(self, request_ids: Iterable[int], reason: FinishReason, error: str | None = None) -> None:
        """End all open answers of requests; those that have ended already are passed over."""
        for request_id in dict.fromkeys(request_ids):
            self._end(request_id, reason, error)

    def _end(self, request_id: int, reason: FinishReason, error: str | None = None, *, only: int | None = None) -> None:
        """End the open answers of a request, or one of them."""
        request = self._open.get(request_id)
        if request is not None:
            ended = [answer for answer in sorted(request.open_answers) if only is None or answer == only]
            self._deliver([request.end(answer, reason, error) for answer in ended])

    def _tell(self) -> None:
        """Tell the events that have not been told."""
        events, self._untold, self._is_urgent = self._untold, [], False
        self._deliver(events)

    def _deliver(self, events: Iterable[TokenEvent]) -> None:
        heard: dict[Listener, list[TokenEvent]] = {}
        for event in events:
            request = self._open[event.request_id]
            request.cached_tokens = event.cached_tokens
            heard.setdefault(request.listener, []).append(event)
        for listener, its_events in heard.items():
            try:
                listener(its_events)
            except Exception:  # a listener's fault is its requests', and no others'
                for event in its_events:
                    self.cancel(event.request_id)
            for event in its_events:
                if event.finish_reason is not None:
                    self._end_answer(self._open[event.request_id], event.answer, event.finish_reason)

    def _end_answer(self, request: _Open, answer: int, reason: FinishReason) -> None:
        with self._changed:
            self._ended[reason] += 1
            request.open_answers.discard(answer)
            if not request.open_answers:
                del self._open[request.request_id]
            self._changed.notify_all()
