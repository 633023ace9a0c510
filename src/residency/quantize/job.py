"""One quantization, from a checkpoint to a smaller one: layer by layer, resumable, and all or nothing.

with Quantization(job, progress) as quantization:  # goes on where an earlier one with the same job was ended
    quantization.run()
    evaluation = judged(quantization.scored_logits())  # by the caller; nothing is published until it says so
    quantization.publish()

Beside the output lies a work folder, ".NAME.quantizing", with each finished layer and what goes into the next one; it
goes when the output is there.
Shape suffixes: S samples, T tokens, C channels, V vocabulary.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from residency.errors import StoreError, UsageError
from residency.formats import Format, unpack_rows
from residency.quantize.blocks import encoded
from residency.quantize.forward import Floats, Layer, rms_norm
from residency.quantize.layers import LayerResult, advance, quantize_layer
from residency.quantize.methods import Method, QuantizedMatrix
from residency.quantize.samples import Tokens
from residency.quantize.source import read_rows, read_values
from residency.spec.checkpoint import Checkpoint
from residency.spec.model import ModelSpec, TensorSpec

Progress = Callable[[str, int, int], None]
_JOB, _HEAD, _STREAMS = "job.json", "head.rows", "streams.npz"
SCORED_TOKENS = 128  # whose logits are in memory at once
HEAD_ROWS = 1 << 14  # of the head, likewise
_ENCODED_ROWS = 1 << 12
_VERSION = 7  # of what lies in the work folder; changes with the arithmetic


class Target(Protocol):
    """What is written."""

    def refuse(self, checkpoint: Checkpoint, spec: ModelSpec) -> None:
        """UnsupportedError where it cannot be written, before anything is computed."""

    def format_of(self, tensor: TensorSpec) -> Format:
        """What the embedding or the head is written in."""

    def restored(self, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> QuantizedMatrix:
        """The matrix of which these were `to_arrays`."""

    def write(
        self, out: Path, checkpoint: Checkpoint, spec: ModelSpec, result_of: Callable[[int], LayerResult]
    ) -> None:
        """The checkpoint `out`, layer after layer."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is asked for."""

    checkpoint: Checkpoint
    spec: ModelSpec
    out: Path
    method: Method
    target: Target
    calibration_ST: Tokens  # no samples where the method needs none
    judged_ST: Tokens  # no samples where nobody judges

    @property
    def key(self) -> str:
        """Changes with whatever changes the result."""
        digest = hashlib.sha256(f"{_VERSION} {self.checkpoint.fingerprint} {self.method} {self.target}".encode())
        digest.update(self.calibration_ST.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class ScoredLogits:
    """Some tokens' logits by the source and by the result, and the tokens that came."""

    sample: int
    reference_TV: Floats
    quantized_TV: Floats
    targets_T: Tokens


class Quantization:
    """A job at work. Opening it refuses what cannot be done; closing it keeps finished layers for another time."""

    def __init__(self, job: Job, progress: Progress) -> None:
        self._job, self._progress = job, progress
        self._folder = job.out.with_name(f".{job.out.name}.quantizing")
        self._streams: _Streams
        self._lock: IO[str] | None = None

    def __enter__(self) -> "Quantization":
        if self._job.out.exists():
            raise UsageError(f"{self._job.out} is there already; give another place, or take it away first.")
        self._job.target.refuse(self._job.checkpoint, self._job.spec)
        with self._disk_errors():
            self._open_folder()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()

    def run(self) -> None:
        """Quantize every layer that is not finished yet."""
        job, spec = self._job, self._job.spec
        streams = self._streams = self._kept_streams() or _Streams.of(job)
        for number in range(streams.layers, len(spec.layers)):
            self._progress("quantizing", number, len(spec.layers))
            tensors = {tensor.name.split(".", 3)[3]: read_values(tensor) for tensor in spec.layers[number].tensors}
            layer = Layer(spec.layers[number], spec.norm_epsilon, tensors)
            advance(layer, streams.reference_STC)
            finished = self._finished(number)
            if finished is None:
                result = quantize_layer(layer, job.method, streams.calibration_STC)
                with self._disk_errors():
                    self._keep(number, result)
            else:
                finished.put_into(layer)
                advance(layer, streams.calibration_STC)
            advance(layer, streams.quantized_STC)
            streams.layers = number + 1
            with self._disk_errors():
                self._keep_streams(streams)
        streams.calibration_STC = streams.calibration_STC[:0].copy()  # judging needs the room
        self._progress("quantizing", len(spec.layers), len(spec.layers))

    def scored_logits(self) -> Iterator[ScoredLogits]:
        """After `run`: of the judged samples' second halves, some tokens at a time."""
        tokens, streams = self._job.judged_ST.shape[1], self._streams
        self._write_head()
        for sample, ids_T in enumerate(self._job.judged_ST):
            self._progress("judging", sample, len(self._job.judged_ST))
            for start in range(tokens // 2, tokens - 1, SCORED_TOKENS):
                scored = slice(start, min(start + SCORED_TOKENS, tokens - 1))
                yield ScoredLogits(
                    sample=sample,
                    reference_TV=self._logits(streams.reference_STC[sample, scored], partial(read_rows, self._head)),
                    quantized_TV=self._logits(streams.quantized_STC[sample, scored], self._written_rows),
                    targets_T=ids_T[scored.start + 1 : scored.stop + 1],
                )

    def publish(self) -> None:
        """Put the finished checkpoint where it was asked for, whole, and take the work folder away."""
        made = self._folder / "made"
        with self._disk_errors():
            _remove(made)
            self._job.target.write(made, self._job.checkpoint, self._job.spec, self._result)
            for path in [made] if made.is_file() else [*made.iterdir(), made]:
                _flush(path)
            made.rename(self._job.out)
            _flush(self._job.out.parent)
        self.discard()

    def discard(self) -> None:
        """Take away what is finished: nobody wants it."""
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _head(self) -> TensorSpec:
        return self._job.spec.head or self._job.spec.embedding

    def _logits(self, x_TC: Floats, head_rows: Callable[[int, int], Floats]) -> Floats:
        spec = self._job.spec
        normed_TC = rms_norm(x_TC, read_values(spec.final_norm), spec.norm_epsilon)
        logits_TV = np.empty((len(x_TC), spec.vocabulary), np.float32)
        for rows in _parts(spec.vocabulary, HEAD_ROWS):
            logits_TV[:, rows] = normed_TC @ head_rows(rows.start, rows.stop).T
        return logits_TV

    def _write_head(self) -> None:
        """The head as the result has it, into the work folder: it is read for each of the judged samples."""
        written = self._job.target.format_of(self._head)
        with self._disk_errors(), (self._folder / _HEAD).open("wb") as file:
            for rows in _parts(self._job.spec.vocabulary, _ENCODED_ROWS):
                file.write(encoded(written, read_rows(self._head, rows.start, rows.stop), None).rows_RB.data)

    def _written_rows(self, first: int, last: int) -> Floats:
        """Rows of it."""
        written = self._job.target.format_of(self._head)
        row_bytes = written.bytes_of((self._job.spec.hidden,))
        with (self._folder / _HEAD).open("rb") as file:
            file.seek(first * row_bytes)
            data = np.frombuffer(file.read((last - first) * row_bytes), np.uint8)
        return unpack_rows(written, data.reshape(last - first, row_bytes))

    def _open_folder(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self._folder / _JOB).open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{self._job.out} is being made by another process; wait for it.") from None
        self._lock.seek(0)
        with suppress(ValueError):
            if json.loads(self._lock.read()) == {"job": self._job.key}:
                return
        for path in (*self._folder.glob("layer-*"), *self._folder.glob(_STREAMS)):
            path.unlink()
        self._lock.truncate(0)
        self._lock.write(json.dumps({"job": self._job.key}))
        self._lock.flush()

    def _layer_path(self, number: int) -> Path:
        return self._folder / f"layer-{number:05}.npz"

    def _keep(self, number: int, result: LayerResult) -> None:
        arrays: dict[str, npt.NDArray[Any]] = {f"vector {name}": values for name, values in result.vectors.items()}
        for name, matrix in result.matrices.items():
            arrays |= {f"matrix {name} {part}": values for part, values in matrix.to_arrays().items()}
        path = self._layer_path(number)
        scratch = path.with_suffix(".part")
        with scratch.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)

    def _finished(self, number: int) -> LayerResult | None:
        """A layer that was finished earlier; None if it was not, or its file is damaged (zip files have checksums)."""
        try:
            return self._result(number)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None

    def _result(self, number: int) -> LayerResult:
        vectors: dict[str, Floats] = {}
        matrices: dict[str, dict[str, npt.NDArray[Any]]] = {}
        with self._layer_path(number).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            for key in file.files:
                kind, name, *part = key.split(" ")
                if kind == "vector":
                    vectors[name] = file[key]
                else:
                    matrices.setdefault(name, {})[part[0]] = file[key]
        restored = {name: self._job.target.restored(name, arrays) for name, arrays in matrices.items()}
        return LayerResult(matrices=restored, vectors=vectors)

    def _keep_streams(self, streams: "_Streams") -> None:
        scratch = self._folder / f"{_STREAMS}.part"
        with scratch.open("wb") as file:
            np.savez(file, allow_pickle=False, judged=self._job.judged_ST, **vars(streams))
        scratch.replace(self._folder / _STREAMS)

    def _kept_streams(self) -> "_Streams | None":
        """Where an earlier run was ended; None if there was none, if it judged another text, or if a layer is gone."""
        with suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):
            with (self._folder / _STREAMS).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                kept = {name: file[name] for name in file.files}
            if np.array_equal(kept.pop("judged"), self._job.judged_ST):
                streams = _Streams(**kept | {"layers": int(kept["layers"])})
                if all(self._finished(number) is not None for number in range(streams.layers)):
                    return streams
        return None

    def _disk_errors(self) -> "_DiskErrors":
        return _DiskErrors(self._job.out)


@dataclass(kw_only=True)
class _Streams:
    """Hidden states on their way through the layers, and how many they have been through."""

    layers: int
    calibration_STC: Floats  # of the result
    reference_STC: Floats  # of judged samples, of the source
    quantized_STC: Floats  # and of the result

    @classmethod
    def of(cls, job: Job) -> "_Streams":
        """Before the first layer."""
        written = job.target.format_of(job.spec.embedding)
        return cls(
            layers=0,
            calibration_STC=embedded(job.spec, job.calibration_ST, written),
            reference_STC=embedded(job.spec, job.judged_ST),
            quantized_STC=embedded(job.spec, job.judged_ST, written),
        )


class _DiskErrors:
    """Turns the system's errors into a sentence. Finished layers stay."""

    def __init__(self, out: Path) -> None:
        self._out = out

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error.strerror)
            raise StoreError(
                f"{self._out} could not be written: {reason}. What is finished is kept beside it; make room and give "
                "the same command again."
            ) from error


def embedded(spec: ModelSpec, ids_ST: Tokens, written: Format | None = None) -> Floats:
    """The embeddings of tokens, (samples, tokens, channels), with `written` as that format holds them.

    Only their rows are read.
    """
    found, places = np.unique(ids_ST, return_inverse=True)
    rows_NC = np.empty((len(found), spec.hidden), np.float32)
    for index, token in enumerate(found.tolist()):
        rows_NC[index] = read_rows(spec.embedding, token, token + 1)[0]
    if written is not None:
        rows_NC = encoded(written, rows_NC, None).values_RC
    rows_NC *= np.float32(spec.embedding_scale)
    return rows_NC[places.reshape(ids_ST.shape)]


def _parts(length: int, step: int) -> Iterator[slice]:
    for first in range(0, length, step):
        yield slice(first, min(first + step, length))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Let the disk have it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
