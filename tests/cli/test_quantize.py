"""What `residency quantize` writes, prints and refuses."""

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from residency.engine.text import tokenizer_from_folder, tokenizer_from_gguf
from residency.quantize.layers import quantize_layer
from residency.spec.gguf import read_gguf
from residency.spec.safetensors import read_safetensors
from support.command import Residency
from support.folders import write_folder
from support.gguf_files import write_gguf
from support.models import small_model

QUICK = ("--samples", 2, "--sample-tokens", 64)


def test_four_bits_are_a_quarter_of_sixteen(residency: Residency, source: Path, out: Path) -> None:
    data = report(residency, source, out, "--to", "int4", "--group", 64)
    before, after = (read_safetensors(each / "model.safetensors") for each in (source, out))
    whole = sum(2 * math.prod(t.shape) for name, t in before.items() if "proj" in name)
    assert 0.25 < sum(t.num_bytes for name, t in after.items() if "proj" in name) / whole < 0.3
    assert data["bytes"] == sum(path.stat().st_size for path in out.iterdir())


@pytest.mark.parametrize("method", ["gptq", "awq", "rtn"])
def test_every_method_tells_what_it_cost(
    residency: Residency, source: Path, out: Path, text: Path, method: str
) -> None:
    options = ("--method", method, "--calibration", text, "--text", text, "--chunks", 1, *QUICK)
    data = report(residency, source, out, "--to", "int4", "--group", 64, *options)
    assert 0 < data["kl_divergence"]["mean"] < 1 and 0 < data["top1_agreement"] <= 1
    assert json.loads((out / "config.json").read_text())["quantization_config"]["quant_method"] == {
        "rtn": "compressed-tensors"
    }.get(method, method)


def test_the_same_command_writes_the_same_bytes(residency: Residency, source: Path, text: Path, tmp_path: Path) -> None:
    written = []
    for name in ("a", "b"):
        report(residency, source, tmp_path / name, "--to", "int4", "--group", 64, "--calibration", text, *QUICK)
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert written[0] == written[1]


@pytest.mark.parametrize("damaged", [None, "streams.npz", "layer-00000.npz"])
def test_a_run_that_was_ended_goes_on_to_the_same_bytes(
    residency: Residency, source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: str | None
) -> None:
    options = ("--to", "int4", "--group", 64, "--calibration", text, "--text", text, "--chunks", 1, *QUICK)
    whole = report(residency, source, tmp_path / "whole", *options)
    calls = []

    def once(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return quantize_layer(*arguments)

    monkeypatch.setattr("residency.quantize.job.quantize_layer", once)
    residency("quantize", source, "-o", tmp_path / "part", *options)
    assert not (tmp_path / "part").exists()
    if damaged is not None:
        path = tmp_path / ".part.quantizing" / damaged
        path.write_bytes(path.read_bytes()[:-100])
    part = report(residency, source, tmp_path / "part", *options)
    assert len(calls) == (4 if damaged == "layer-00000.npz" else 3)  # the first layer is not quantized again
    assert part["kl_divergence"] == whole["kl_divergence"]
    assert (tmp_path / "part" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()
    assert [path.name for path in tmp_path.iterdir() if "quantizing" in path.name] == []


def test_a_run_that_goes_on_may_be_judged_by_another_text(
    residency: Residency, source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.txt"
    other.write_text(text.read_text()[::-1])
    options = ("--to", "int8", "--chunks", 1)
    whole = report(residency, source, tmp_path / "whole", *options, "--text", other)
    monkeypatch.setattr("residency.quantize.job.Quantization.publish", interrupted)
    residency("quantize", source, "-o", tmp_path / "part", *options, "--text", text)
    monkeypatch.undo()
    part = report(residency, source, tmp_path / "part", *options, "--text", other)
    assert part["kl_divergence"] == whole["kl_divergence"]


def test_a_result_that_misses_the_bound_is_not_written(
    residency: Residency, source: Path, out: Path, text: Path
) -> None:
    options = ("--to", "int3", "--text", text, "--chunks", 1, "--max-kl", 1e-6)
    result = residency("quantize", source, "-o", out, *options)
    assert result.exit_code == 2 and "nothing was written" in result.stderr
    assert sorted(path.name for path in out.parent.iterdir()) == ["source", "text.txt"]


def test_a_full_disk_leaves_nothing_half_written(
    residency: Residency, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("residency.quantize.folder.write_safetensors", full)
    result = residency("quantize", source, "-o", out, "--to", "int8")
    assert result.exit_code == 2 and "the disk is full" in result.stderr and not out.exists()


def test_what_is_there_is_not_overwritten(residency: Residency, source: Path, out: Path) -> None:
    out.mkdir()
    result = residency("quantize", source, "-o", out, "--to", "int8")
    assert result.exit_code == 2 and "is there already" in result.stderr


def test_a_budget_is_kept_or_refused(residency: Residency, source: Path, out: Path, text: Path) -> None:
    options = ("--to", "int4", "--group", 64, "--calibration", text, "--memory", "100MiB")
    result = residency("quantize", source, "-o", out, *options)
    assert result.exit_code == 2 and "with the fewest samples" in result.stderr


def test_layouts_without_a_place_for_short_groups_say_so(residency: Residency, tmp_path: Path, out: Path) -> None:
    source = write_folder(tmp_path / "odd", small_model("llama", num_layers=1, intermediate=320))
    result = residency("quantize", source, "-o", out, "--to", "int4", "--layout", "compressed-tensors")
    assert result.exit_code == 2 and "--group 64" in result.stderr


def test_short_groups_are_written_in_gptqs_layout(residency: Residency, tmp_path: Path, out: Path) -> None:
    source = write_folder(tmp_path / "odd", small_model("llama", num_layers=1, intermediate=320))
    report(residency, source, out, "--to", "int4", "--method", "awq", *QUICK)
    assert json.loads((out / "config.json").read_text())["quantization_config"]["quant_method"] == "gptq"


def test_calibrated_methods_have_a_text_of_their_own(residency: Residency, source: Path, out: Path) -> None:
    result = residency("quantize", source, "-o", out, "--to", "int4", "--group", 64, "--method", "awq", *QUICK)
    assert result.exit_code == 0 and "--calibration FILE" in result.stderr


def test_a_gguf_files_tokenizer_comes_along(residency: Residency, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "small.gguf", small_model("qwen2", num_layers=1), "Q8_0")
    report(residency, path, tmp_path / "out", "--to", "int8")
    there, here = tokenizer_from_folder(tmp_path / "out"), tokenizer_from_gguf(read_gguf(path).config)
    for text in ("the other one <|im_end|> in the 12 gardens", " é\n\n\t  x"):
        assert there.encode(text, add_special=True) == here.encode(text, add_special=True)
    assert there.eos_ids == here.eos_ids


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3"])
@pytest.mark.parametrize("to", [("--to", "int4", "--group", 64, "--symmetric"), ("--to", "int8")])
def test_transformers_loads_it_and_computes_the_same(
    residency: Residency, tmp_path: Path, text: Path, architecture: str, to: tuple[object, ...]
) -> None:
    source = write_folder(tmp_path / "source", small_model(architecture, num_layers=2))
    judged = report(residency, source, tmp_path / "out", *to, "--text", text, "--chunks", 1)
    found = perplexity_in_transformers(tmp_path / "out", text)
    assert found == pytest.approx(judged["perplexity"]["value"], rel=2e-3)


@pytest.mark.filterwarnings("ignore")  # of names that the readers use and transformers is giving up
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize(
    "to",
    [
        ("--to", "int4", "--method", "gptq"),
        ("--to", "int4", "--method", "gptq", "--symmetric"),
        ("--to", "int3", "--method", "gptq"),
        ("--to", "int8", "--method", "gptq"),
        ("--to", "int4", "--method", "awq"),
    ],
    ids=["gptq", "gptq, symmetric", "gptq, 3 bits", "gptq, 8 bits", "awq"],
)
def test_transformers_loads_it_through_gptqmodel_and_computes_the_same(
    residency: Residency, tmp_path: Path, text: Path, architecture: str, to: tuple[object, ...]
) -> None:
    for name in ("gptqmodel", "optimum", "accelerate"):
        pytest.importorskip(name, reason=f"transformers reads GPTQ's and AWQ's layouts with {name}")
    source = write_folder(tmp_path / "source", small_model(architecture, num_layers=2))
    options = ("--calibration", text, "--text", text, "--chunks", 1)
    judged = report(residency, source, tmp_path / "out", *to, *options, *QUICK)
    found = perplexity_in_transformers(tmp_path / "out", text)
    assert found == pytest.approx(judged["perplexity"]["value"], rel=2e-3)


@pytest.mark.parametrize(
    "to",
    [
        ("--to", "int4", "--method", "gptq"),
        ("--to", "int4", "--method", "awq"),
        ("--to", "int4", "--method", "rtn", "--symmetric"),
        (
            "--to",
            "int8",
        ),
    ],
    ids=["gptq", "awq", "compressed-tensors", "int8"],
)
def test_the_engine_runs_it_in_its_bits(
    residency: Residency, source: Path, out: Path, text: Path, to: tuple[object, ...]
) -> None:
    judged = report(residency, source, out, *to, "--calibration", text, "--text", text, "--chunks", 1, *QUICK)
    options = ("--text", text, "--against", source, "--chunks", 1, "--json")
    run = json.loads(residency("evaluate", out, *options).stdout)
    assert run["perplexity"]["value"] == pytest.approx(judged["perplexity"]["value"], rel=1e-2)
    assert run["kl_divergence"]["mean"] == pytest.approx(judged["kl_divergence"]["mean"], rel=0.1, abs=5e-3)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_gguf_file_becomes_one_that_runs_alike(residency: Residency, tmp_path: Path, architecture: str) -> None:
    source, text = write_gguf(tmp_path / "source.gguf", small_model(architecture, num_layers=2)), tmp_path / "text.txt"
    text.write_text("the other one in the garden " * 150)
    judged = report(residency, source, tmp_path / "out.gguf", "--to", "q8_0", "--text", text, "--chunks", 1)
    options = ("--text", text, "--against", source, "--chunks", 1, "--json")
    run = json.loads(residency("evaluate", tmp_path / "out.gguf", *options).stdout)
    assert run["perplexity"]["value"] == pytest.approx(judged["perplexity"]["value"], rel=1e-2)
    assert run["kl_divergence"]["mean"] < 5e-3  # the engine's activations are rounded, too


def test_what_embedding_and_head_lose_is_counted(residency: Residency, tmp_path: Path, text: Path) -> None:
    source = write_gguf(tmp_path / "source.gguf", small_model("llama", num_layers=1))
    judged = report(residency, source, tmp_path / "out.gguf", "--to", "q4_0", "--text", text, "--chunks", 1)
    options = ("--text", text, "--against", source, "--chunks", 1, "--json")
    run = json.loads(residency("evaluate", tmp_path / "out.gguf", *options).stdout)
    assert run["kl_divergence"]["mean"] == pytest.approx(judged["kl_divergence"]["mean"], rel=0.1)


def test_a_gguf_files_metadata_is_kept_but_for_the_formats(residency: Residency, tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "source.gguf", small_model("llama", num_layers=1))
    report(residency, source, tmp_path / "out.gguf", "--to", "q4_k_m")
    before, after = (dict(read_gguf(path).config) for path in (source, tmp_path / "out.gguf"))
    assert after.pop("general.file_type") == 15 and after.pop("general.quantization_version") == 2
    assert {key: str(value) for key, value in after.items() if "tokenizer" not in key} == {
        key: str(value) for key, value in before.items() if "tokenizer" not in key
    }
    assert list(after["tokenizer.ggml.tokens"]) == list(before["tokenizer.ggml.tokens"])


def test_calibration_makes_blocks_better(residency: Residency, tmp_path: Path, text: Path) -> None:
    source = write_gguf(tmp_path / "source.gguf", small_model("llama", num_layers=2))
    options = ("--to", "q4_0", "--text", text, "--chunks", 1)
    plain = report(residency, source, tmp_path / "plain.gguf", *options)
    fitted = report(residency, source, tmp_path / "fitted.gguf", *options, "--calibration", text, *QUICK)
    assert fitted["kl_divergence"]["mean"] < plain["kl_divergence"]["mean"]


def test_a_file_of_a_given_size_is_not_larger(residency: Residency, tmp_path: Path, text: Path) -> None:
    source = write_gguf(tmp_path / "source.gguf", small_model("llama", num_layers=2))
    options = ("--calibration", text, "--text", text, "--chunks", 1, *QUICK)
    found = []
    for size in (1_000_000, 1_200_000):
        data = report(residency, source, tmp_path / f"{size}.gguf", "--target-size", f"{size}B", *options)
        assert 0.9 * size < data["bytes"] <= size
        found.append(data["kl_divergence"]["mean"])
    assert found[1] < found[0]


def test_plans_know_what_was_measured(
    residency: Residency, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESIDENCY_CACHE", str(tmp_path / "cache"))
    source = write_gguf(tmp_path / "source.gguf", small_model("llama", num_layers=1))
    data = report(residency, source, tmp_path / "out.gguf", "--to", "q4_0", "--text", text, "--chunks", 1)
    plan = residency(
        "plan", source, "--on", "L4", "--engine", "llama.cpp", "--context", 256, "--quant", "q4_0", "--json"
    )
    rise = data["perplexity"]["value"] / data["reference_perplexity"]["value"] - 1
    assert json.loads(plan.stdout)["placement"]["perplexity_rise"] == pytest.approx(max(0, rise))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_a_folder_becomes_a_gguf_file_that_runs_alike(
    residency: Residency, tmp_path: Path, text: Path, architecture: str
) -> None:
    source = write_folder(tmp_path / "source", small_model(architecture, num_layers=2))
    judged = report(residency, source, tmp_path / "out.gguf", "--to", "q8_0", "--text", text, "--chunks", 1)
    options = ("--text", text, "--against", source, "--chunks", 1, "--json")
    run = json.loads(residency("evaluate", tmp_path / "out.gguf", *options).stdout)
    assert run["perplexity"]["value"] == pytest.approx(judged["perplexity"]["value"], rel=1e-2)
    assert run["kl_divergence"]["mean"] < 5e-3  # the engine's activations are rounded, too


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_a_folders_gguf_file_holds_the_tensors_that_llama_cpps_converter_writes(
    residency: Residency, tmp_path: Path, architecture: str
) -> None:
    model = small_model(architecture, num_layers=2)
    report(residency, write_folder(tmp_path / "source", model), tmp_path / "out.gguf", "--to", "gguf-f16")
    there = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    here = gguf.GGUFReader(write_gguf(tmp_path / "reference.gguf", model, "F16")).tensors
    assert there.keys() == {tensor.name for tensor in here}
    for tensor in here:
        np.testing.assert_array_equal(there[tensor.name].data, tensor.data)


def test_a_folders_tokenizer_comes_along_into_gguf(residency: Residency, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", small_model("qwen2", num_layers=1))
    report(residency, source, tmp_path / "out.gguf", "--to", "q8_0")
    there, here = tokenizer_from_gguf(read_gguf(tmp_path / "out.gguf").config), tokenizer_from_folder(source)
    for text in ("the other one <|im_end|> in the 12 gardens", " é\n\n\t  x"):
        assert there.encode(text, add_special=True) == here.encode(text, add_special=True)
    assert there.eos_ids == here.eos_ids and there.bos_id == here.bos_id


def test_a_tokenizer_without_a_name_in_gguf_is_refused(residency: Residency, source: Path, tmp_path: Path) -> None:
    content = json.loads((source / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {"type": "Whitespace"}
    (source / "tokenizer.json").write_text(json.dumps(content))
    result = residency("quantize", source, "-o", tmp_path / "out.gguf", "--to", "q4_0")
    assert result.exit_code == 2 and "GGUF file in 16 bits" in result.stderr


def test_blocks_have_no_method_of_their_own(residency: Residency, source: Path, out: Path) -> None:
    result = residency("quantize", source, "-o", out, "--to", "q4_0", "--method", "gptq")
    assert result.exit_code == 2 and "leave --group" in result.stderr


def perplexity_in_transformers(folder: Path, text: Path) -> float:
    """Of the second half of the text's first 512 tokens, in float32."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    ids = tokenizer_from_folder(folder).encode(text.read_text(), add_special=True)[:512]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    return float(torch.nn.functional.cross_entropy(logits[256:-1], torch.tensor(ids[257:])).exp())


def interrupted(*arguments: object) -> None:
    raise KeyboardInterrupt


def report(residency: Residency, source: Path, out: Path, *options: object) -> dict[str, Any]:
    result = residency("quantize", source, "-o", out, *options, "--json")
    assert result.exit_code == 0, result.stderr
    data: dict[str, Any] = json.loads(result.stdout)
    return data


@pytest.fixture(autouse=True)
def _prepared_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is evaluated is converted when it is opened: a process of its own takes longer than all of these models."""
    monkeypatch.setattr("residency.cli.evaluate.prepare_first", lambda *_: None)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "source", small_model("llama", num_layers=2))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    words = np.random.default_rng(1).choice("the other one in a garden near thin trees".split(), 1200)
    path.write_text(" ".join(words))
    return path
