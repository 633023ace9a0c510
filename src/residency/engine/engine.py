"""The engine: a plan in, text out."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from types import TracebackType

from residency.engine.arena import peak_resident_bytes, resident_bytes
from residency.engine.device import DeviceExecutor, open_executor
from residency.engine.executor import CpuExecutor
from residency.engine.generation import GenerationOptions, TokenEvent
from residency.engine.kv_store import KvStoreSpace
from residency.engine.lending import PAGES, SPANS, Lender
from residency.engine.loop import Loop
from residency.engine.planning import open_planned
from residency.engine.report import Bandwidth, Report, Seconds
from residency.engine.sampler import Sampling
from residency.engine.swap import SwapSpace
from residency.engine.text import ChatTemplate, StreamDecoder, Tokenizer, load_chat_template, load_tokenizer
from residency.errors import ContextError, UsageError
from residency.ledger import Ledger, MemoryClass
from residency.planner.device_speed import cost_of
from residency.planner.plan import MemoryBytes, Plan
from residency.scheduler import Admission
from residency.spec.checkpoint import Checkpoint
from residency.spec.model import ModelSpec
from residency.store.paging import PagingCounts
from residency.store.weights import Weights, ensure_store

DEFAULT_MAX_TOKENS = 512
Messages = Sequence[Mapping[str, str]]
Prompt = str | Messages | Sequence[int]
Progress = Callable[[str, int, int], None]  # what is being done, how much is done, of how much


class Engine:
    """A model in memory, ready to generate. Made by `Engine.open`; use it in a `with` statement."""

    def __init__(self, plan: Plan, spec: ModelSpec, tokenizer: Tokenizer, checkpoint: Checkpoint) -> None:
        self.plan = plan
        self.tokenizer = tokenizer
        self._spec = spec
        self._checkpoint = checkpoint
        self._opened = ExitStack()
        self._streams: dict[int, Stream] = {}
        self._load_seconds = 0.0

    @staticmethod
    def open(plan: Plan, *, progress: Progress | None = None) -> "Engine":
        """Load what `plan` says. Converts the model and compiles kernels where that has not been done before.

        FileError if the model's files are no longer those that were planned or the plan does not fit them,
        StoreError if the store cannot be written, BudgetError if the plan does not fit into its own budget.
        """
        started = time.perf_counter()
        checkpoint, spec = open_planned(plan)
        engine = Engine(plan, spec, load_tokenizer(checkpoint), checkpoint)
        engine._load(progress)
        engine._load_seconds = time.perf_counter() - started
        return engine

    def _load(self, progress: Progress | None) -> None:
        def stage(name: str) -> Callable[[int, int], None] | None:
            return None if progress is None else lambda done, total: progress(name, done, total)

        self.ledger = Ledger(self.plan.budget_bytes)
        for kind, owner, num_bytes in _holdings(self.plan):
            self.ledger.reserve(kind, owner=owner, num_bytes=num_bytes)
        if self.plan.device is not None:
            self._executor: CpuExecutor | DeviceExecutor = self._opened.enter_context(
                open_executor(self.plan, self._spec, loading=stage("loading"))
            )
            self._loop = self.new_loop()
            return
        with self._opened as opened:
            folder = ensure_store(self._spec, self.plan.model_fingerprint, progress=stage("converting"))
            self._weights = opened.enter_context(
                Weights(self._spec, folder, self.plan.streaming, self.plan.paging, loading=stage("loading"))
            )
            self._executor = opened.enter_context(
                CpuExecutor(self.plan, self._spec, self._weights, compiling=stage("compiling kernels"))
            )
            self._loop = self.new_loop()
            self._opened = opened.pop_all()

    def new_loop(
        self,
        admission: Admission = "optimistic",
        swap: SwapSpace | None = None,
        store: KvStoreSpace | None = None,
    ) -> Loop:
        """A loop with nothing to do yet. One at a time: all use the same pages."""
        if swap is not None and not isinstance(self._executor, CpuExecutor):
            self._executor.reserve_swap(swap)
        return Loop(
            self.plan,
            self._executor,
            eos_ids=self.tokenizer.eos_ids,
            weight_read_bytes=cost_of(self.plan, self._spec).unrouted_bytes,
            admission=admission,
            swap=swap,
            store=store,
            lender=self._lender(),
        )

    def stay(self) -> None:
        """The calling thread runs a loop and does nothing else from now on; it may be given a processor of its own."""
        if isinstance(self._executor, CpuExecutor):
            self._executor.stay()

    def _lender(self) -> Lender | None:
        """For several sequences, which seldom need all pages at one time; alone, a run is what its plan says."""
        if self.plan.streaming is None or self.plan.max_sequences == 1 or not isinstance(self._executor, CpuExecutor):
            return None
        assert self._weights.residents is not None
        return Lender(self.plan, self._executor, self._weights.residents, self.ledger)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the threads and give all memory back."""
        self._opened.close()

    @property
    def expert_counts(self) -> PagingCounts | None:
        """How often experts were in memory when they were needed; None where all of them are."""
        if not isinstance(self._executor, CpuExecutor):
            return self._executor.expert_counts
        return None if self._weights.pager is None else self._weights.pager.counts

    @property
    def vocabulary(self) -> int:
        """Logits that a token is chosen by: at least as many as there are tokens."""
        return self._spec.vocabulary

    @property
    def chat_template(self) -> ChatTemplate | None:
        """The model's chat template; None if it has none."""
        return load_chat_template(self._checkpoint)

    def encode(self, prompt: Prompt) -> list[int]:
        """The tokens of a prompt: a text is taken as a user's message where the model has a chat template,
        messages ({"role", "content"}) are rendered, and tokens are taken as they are.
        """
        if isinstance(prompt, str):
            template = self.chat_template
            if template is None:
                return self.tokenizer.encode(prompt, add_special=True, parse_special=False)
            return self.tokenizer.encode(template.render([{"role": "user", "content": prompt}]), add_special=False)
        if all(isinstance(token, int) for token in prompt):
            self.check_tokens(prompt)  # type: ignore[arg-type]
            return list(prompt)  # type: ignore[arg-type]
        template = self.chat_template
        if template is None:
            raise UsageError(f"{self.plan.model_name} has no chat template; give the prompt as one text.")
        return self.tokenizer.encode(template.render(prompt), add_special=False)  # type: ignore[arg-type]

    def check_tokens(self, tokens: Iterable[int]) -> None:
        """UsageError for a token that the model does not have."""
        for token in tokens:
            if not 0 <= token < self._spec.vocabulary:
                raise UsageError(f"the token {token} is not one of the model's {self._spec.vocabulary}.")

    def generate(self, prompt: Prompt, *, max_tokens: int | None = None, sampling: Sampling | None = None) -> Report:
        """The whole answer with its measurements; see `stream`."""
        stream = self.stream(prompt, max_tokens=max_tokens, sampling=sampling)
        for _ in stream:
            pass
        return stream.report

    def stream(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        ignore_eos: bool = False,
    ) -> "Stream":
        """The answer in pieces of whole characters, as they come. `report` has the measurements afterwards.

        max_tokens: by default 512, or what the context has room for. `ignore_eos` goes on after an end-of-text token,
        for measuring. ContextError where the prompt leaves no room.
        """
        tokens = self.encode(prompt)
        room = self.plan.context_tokens - len(tokens)
        if not tokens:
            raise UsageError("the prompt is empty; give at least one character.")
        if room < 1:
            raise ContextError(
                f"the prompt has {len(tokens)} tokens and the context {self.plan.context_tokens}: "
                f"{1 - room} too many; shorten it, or plan with --context {len(tokens) + DEFAULT_MAX_TOKENS}."
            )
        if max_tokens is None:
            max_tokens = min(room, DEFAULT_MAX_TOKENS)
        options = GenerationOptions(
            max_tokens=max_tokens, sampling=sampling or Sampling(), ignore_eos=ignore_eos, use_prefix_cache=False
        )
        stream = Stream(self, tokens, options)
        self._streams[stream._request_id] = stream
        return stream

    def _step(self) -> None:
        """One step of the loop; its tokens go to their streams."""
        for event in self._loop.step():
            stream = self._streams[event.request_id]
            stream._take(event, self._loop)
            if event.is_last:
                del self._streams[event.request_id]

    def read_rate(self, seconds: float) -> float | None:
        """Bytes per second at which what streams arrives in its buffers while nobody computes, for about so long; None
        where nothing does. No answer may be under way. StoreError where the disk fails.
        """
        residents = self._weights.residents if isinstance(self._executor, CpuExecutor) else None
        return None if residents is None else residents.stream.read_rate(seconds)

    def measured_memory(self, loop: Loop | None = None) -> MemoryBytes:
        """Memory by class so far: mapped weights and activations that are resident, pages in use by `loop` (the
        engine's own by default), and the rest of the process's peak as runtime.
        """
        if not isinstance(self._executor, CpuExecutor):
            return self._executor.measured_memory((loop or self._loop).kv_bytes)
        weights = sum(resident_bytes(*each) for each in self._weights.in_memory)
        kv_cache, activations = (loop or self._loop).kv_bytes, self._executor.activation_bytes
        runtime = max(0, peak_resident_bytes() - weights - kv_cache - activations)
        return MemoryBytes(weights=weights, kv_cache=kv_cache, activations=activations, runtime=runtime)


def _holdings(plan: Plan) -> Iterator[tuple[MemoryClass, str, int]]:
    """Who holds how many bytes of which class, by the plan."""
    streaming, slots_bytes = plan.streaming, 0 if plan.paging is None else plan.paging.memory_bytes
    if slots_bytes:
        yield MemoryClass.WEIGHTS, "slots of experts", slots_bytes
    if streaming is None:
        yield MemoryClass.WEIGHTS, "map of the store", plan.memory.weights - slots_bytes
    else:
        yield MemoryClass.WEIGHTS, SPANS, streaming.resident_bytes
        yield MemoryClass.WEIGHTS, "streaming buffers", streaming.buffer_bytes
    yield MemoryClass.KV_CACHE, PAGES, plan.memory.kv_cache
    yield MemoryClass.ACTIVATIONS, "buffers of a step", plan.memory.activations
    yield MemoryClass.RUNTIME, "process", plan.memory.runtime


class Stream:
    """Iterates over the pieces of one answer."""

    def __init__(self, engine: Engine, tokens: list[int], options: GenerationOptions) -> None:
        self._engine = engine
        self._prompt_tokens = len(tokens)
        self._decoder = StreamDecoder(engine.tokenizer)
        self._started = time.perf_counter()
        self._request_id = engine._loop.submit(tokens, options)
        self._pieces: list[str] = []
        self._pieces_ahead: deque[str] = deque()
        self._token_times: list[float] = []
        self._read_bytes: list[int] = []
        self._steps: list[int] = []
        self._expert_counts: list[PagingCounts | None] = []
        self._finish_reason = "length"
        self._ended = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while not self._pieces_ahead and not self._ended:
            self._engine._step()
        if not self._pieces_ahead:
            raise StopIteration
        self._pieces.append(self._pieces_ahead.popleft())
        return self._pieces[-1]

    def close(self) -> None:
        """Stop early: the request is forgotten and its pages are free."""
        self._engine._loop.cancel(self._request_id)
        self._engine._streams.pop(self._request_id, None)
        self._ended = True

    def _take(self, event: TokenEvent, loop: Loop) -> None:
        """A token of this answer, from whichever stream made the engine step."""
        assert event.token is not None, "a stream has no logit mask that could fail"
        self._token_times.append(time.perf_counter())
        self._read_bytes.append(loop.read_bytes)
        self._steps.append(loop.steps)
        self._expert_counts.append(self._engine.expert_counts)
        at_eos = event.token in self._engine.tokenizer.eos_ids
        piece = "" if at_eos else self._decoder.feed(event.token)
        if event.is_last:
            self._ended = True
            self._finish_reason = "stop" if at_eos else "length"
            piece += self._decoder.flush()
        if piece:
            self._pieces_ahead.append(piece)

    @property
    def token_seconds(self) -> list[float]:
        """How long each token after the first took."""
        return [after - before for before, after in pairwise(self._token_times)]

    @property
    def report(self) -> Report:
        """What was measured, once the answer is complete."""
        assert self._token_times, "nothing has been generated yet"
        first, last = self._token_times[0], self._token_times[-1]
        decode_seconds = last - first
        read_bytes = self._read_bytes[-1] - self._read_bytes[0]
        return Report(
            plan=self._engine.plan,
            text="".join(self._pieces),
            prompt_tokens=self._prompt_tokens,
            completion_tokens=len(self._token_times),
            finish_reason=self._finish_reason,
            seconds=Seconds(
                load=self._engine._load_seconds,
                first_token=first - self._started,
                decode=decode_seconds,
                total=last - self._started,
            ),
            memory=self._engine.measured_memory(),
            bandwidth=Bandwidth(
                measured_bytes_per_second=self._engine.plan.forecast.read_bytes_per_second,
                achieved_bytes_per_second=read_bytes / decode_seconds if decode_seconds else 0.0,
            ),
            disk=self._disk(decode_seconds),
            expert_hit_rate=self._expert_hit_rate(),
        )

    def _expert_hit_rate(self) -> float | None:
        first, last = self._expert_counts[0], self._expert_counts[-1]
        return None if first is None or last is None else last.since(first).hit_rate

    def _disk(self, decode_seconds: float) -> Bandwidth | None:
        streaming = self._engine.plan.streaming
        if streaming is None:
            return None
        read_bytes = streaming.streamed_bytes * (self._steps[-1] - self._steps[0])
        first, last = self._expert_counts[0], self._expert_counts[-1]
        if first is not None and last is not None:
            read_bytes += last.since(first).read_bytes
        return Bandwidth(
            measured_bytes_per_second=streaming.disk_bytes_per_second,
            achieved_bytes_per_second=read_bytes / decode_seconds if decode_seconds else 0.0,
        )
