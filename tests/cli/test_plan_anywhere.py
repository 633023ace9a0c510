"""`residency plan --on`, compare and explain: what they print, and what they refuse."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from residency.planner.answers import AnswerRecord
from support.command import Residency

LLAMA_8B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "torch_dtype": "bfloat16",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def answered(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refusal(result: Result) -> str:
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("residency: ") and result.stdout == ""
    return line


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for a connection fails."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("nobody may connect")

    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.mark.usefixtures("no_network")
def test_a_known_name_needs_no_network(residency: Residency) -> None:
    assert answered(residency("plan", "meta-llama/Llama-3.1-70B", "--on", "4xH100-80GB", "--json"))["fits"] is True


def test_the_json_holds_what_every_answer_tells(residency: Residency) -> None:
    told = answered(residency("plan", "llama-3.1-8b", "--on", "2xH100-80GB", "--context", 8192, "--json"))
    assert told["model"].keys() >= {"architecture", "parameters", "weight_bytes", "read_bytes_per_token", "states"}
    assert told["model"]["states"][0].keys() >= {"kind", "layers", "bytes_per_token", "max_tokens", "fixed_bytes"}
    classes = {"name", "budget_bytes", "weights", "kv_cache", "activations", "runtime", "free"}
    assert [device.keys() >= classes for device in told["devices"]] == [True, True]
    speeds = {"decode_tokens_per_second", "prefill_tokens_per_second", "time_to_first_token_seconds", "bound"}
    assert told["forecast"].keys() >= speeds
    assert {origin["origin"] for origin in told["origins"].values()} <= {
        "exact",
        "measured",
        "modelled",
        "extrapolated",
        "assumed",
    }


def test_a_run_s_json_tells_the_same(residency: Residency, model_path: Path) -> None:
    told = answered(residency("plan", model_path, "--on", "this", "--memory", "300MiB", "--json"))
    assert told["model"]["architecture"] == "llama" and told["fits"] is True
    (device,) = told["devices"]
    assert sum(device[name] for name in ("weights", "kv_cache", "activations", "runtime", "free")) == 300 * 1024**2


def test_a_run_here_that_does_not_fit_is_an_answer_when_this_machine_is_named(
    residency: Residency, model_path: Path
) -> None:
    told = answered(residency("plan", model_path, "--on", "this", "--memory", "20MiB", "--json"))
    assert told["fits"] is False and told["missing_bytes"] > 0


def test_a_training_run_s_json_tells_its_classes(residency: Residency) -> None:
    options = "--train --optimizer adamw --batch 4 --context 4096 --on 4xA100-80GB --json".split()
    told = answered(residency("plan", "llama-3-8b", *options))
    assert told["training"].keys() >= {"weights", "gradients", "optimizer", "activations", "peak"}
    assert told["training"]["gradients"] == 2 * told["model"]["parameters"]
    assert told["fits"] is False and told["nearest"]["fits"] is True


def test_a_folder_with_nothing_but_a_configuration_is_a_model(residency: Residency, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    told = answered(residency("plan", tmp_path, "--on", "H100-80GB", "--json"))
    assert told["model"]["parameters"] == 8_030_261_248


def test_a_key_that_changes_memory_and_is_not_known_is_named(residency: Residency, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA_8B, "kv_lora_rank": 512}))
    assert "kv_lora_rank" in refusal(residency("plan", tmp_path, "--on", "H100-80GB"))


def test_without_a_model_the_known_ones_are_listed(residency: Residency) -> None:
    assert "meta-llama/Llama-3.1-8B" in residency("plan").stdout
    assert len(answered(residency("plan", "--json"))["models"]) >= 60


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--on", "H1000"], "H1000"),
        (["--on", "0xH100-80GB"], "0"),
        (["--on", "missing.toml"], "missing.toml"),
        (["--on", "H100-80GB", "--memory", "0GB"], "a budget of 0 bytes"),
        (["--on", "H100-80GB", "--memory", "100GiB"], "more than the 79.2 GiB"),
        (["--on", "H100-80GB", "--memory", "40"], "has no unit"),
        (["--on", "H100-80GB", "--memory", "40G"], "can be read in two ways"),
        (["--on", "H100-80GB", "--context", "0"], "--context cannot be 0"),
        (["--on", "H100-80GB", "--context", "200000"], "is 68928 more than Llama-3.1-8B has"),
        (["--on", "H100-80GB", "--concurrency", "-1"], "--concurrency cannot be -1"),
        (["--on", "H100-80GB", "--concurrency", "1000001"], "no machine answers more than 1000000 at once"),
        (["--on", "H100-80GB", "--train", "--memory", "0GB"], "a budget of 0 bytes"),
        (["--on", "H100-80GB", "--context", "100", "--prompt", "101"], "longer than a context"),
        (["--on", "8xH100-80GB", "--tp", "3"], "32 attention heads, which 3 ranks cannot share"),
        (["--on", "2xH100-80GB", "--tp", "4"], "need 4 devices"),
        (["--on", "H100-80GB", "--pp", "40"], "in 40 stages need 40 devices"),
        (["--on", "H100-80GB", "--html", "/no/such/folder/page.html"], "/no/such/folder/page.html cannot be written"),
        (["--on", "2xH100-80GB", "--tp", "0"], "0 tensor-parallel ranks cannot be"),
        (["--on", "H100-80GB", "--kv", "int3"], "'int3' is no format of a KV cache"),
        (["--on", "H100-80GB", "--quant", "int3"], "'int3' is no format that weights"),
        (["--on", "H100-80GB", "--draft", "gemma-3-1b-it"], "a smaller model of the same family"),
        (["--on", "H100-80GB", "--acceptance", "0.5"], "name one with --draft"),
        (["--on", "H100-80GB", "--draft", "llama-3.2-1b", "--acceptance", "1.5"], "acceptance rate of 1.5"),
        (["--on", "H100-80GB", "--batch", "4"], "give --train as well"),
        (["--on", "H100-80GB", "--train", "--kv", "int8"], "means nothing to --train"),
        (["--on", "H100-80GB", "--train", "--lora", "8", "--qlora", "8"], "cannot go together"),
        (["--on", "this", "--ram", "4GB"], "of a machine elsewhere"),
        (["--on", "H100-80GB", "--threads", "4"], "leave it away"),
        (["--on", "H100-80GB", "--plan-out", "plan.json"], "--plan-out keeps"),
    ],
)
def test_what_cannot_be_meant_is_refused(residency: Residency, options: list[str], sentence: str) -> None:
    assert sentence in refusal(residency("plan", "llama-3.1-8b", *options))


def test_a_name_that_nobody_knows_gets_those_that_are_near(residency: Residency) -> None:
    assert "did you mean" in refusal(residency("plan", "llama-3.1-8bb", "--on", "H100-80GB"))


def test_an_answer_is_explained_as_it_was_printed(residency: Residency, tmp_path: Path) -> None:
    options = ("plan", "qwen3-30b-a3b", "--on", "rtx4090", "--ram", "64GB")
    path = tmp_path / "answer.json"
    path.write_text(residency(*options, "--json").stdout)
    assert residency("explain", path).stdout == residency(*options).stdout


def test_a_run_s_plan_is_explained_too(residency: Residency, model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(residency("plan", model_path, "--memory", "300MiB", "--json").stdout)
    assert residency("explain", path).stdout == residency("plan", model_path, "--memory", "300MiB").stdout


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"answer_version": 1}', '{"answer_version": 2}', "\x00"])
def test_what_is_no_answer_is_not_explained(residency: Residency, tmp_path: Path, text: str) -> None:
    path = tmp_path / "answer.json"
    path.write_text(text)
    assert "the answer cannot be used" in refusal(residency("explain", path))


def test_models_and_machines_are_compared_row_by_row(residency: Residency) -> None:
    lines = residency(
        "compare", "llama-3.1-8b", "qwen2.5-7b", "--on", "rtx4090", "--on", "H100-80GB"
    ).stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        [model, machine] for model in ("Llama-3.1-8B", "Qwen2.5-7B") for machine in ("rtx4090", "H100-80GB")
    ]


def test_machines_may_be_named_after_models(residency: Residency) -> None:
    told = answered(residency("compare", "llama-3.1-8b", "--on", "rtx4090", "H100-80GB", "--json"))
    assert [each["machine"] for each in told["answers"]] == ["rtx4090", "H100-80GB"]


@pytest.mark.parametrize("options", [["--concurrency", 32], ["--train", "--optimizer", "adamw"]])
def test_a_page_needs_nothing_else(residency: Residency, tmp_path: Path, options: list[object]) -> None:
    path = tmp_path / "page.html"
    assert residency("plan", "llama-3.1-8b", "--on", "2xH100-80GB", *options, "--html", path).exit_code == 0
    page = path.read_text("utf-8")
    assert re.findall(r"(?:src|href|url)\s*[=(]|@import|<script", page) == []
    assert page.count("<svg") == page.count("</svg>") > 0
    assert "prefers-color-scheme: dark" in page


def test_a_page_of_a_run_here_is_drawn_too(residency: Residency, model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert residency("plan", model_path, "--memory", "300MiB", "--html", path).exit_code == 0
    assert path.read_text("utf-8").count("<svg") == 3


def test_an_answer_in_words_says_what_is_missing_and_what_would_fit(residency: Residency) -> None:
    printed = residency("plan", "llama-3.1-70b", "--on", "2xH100-80GB", "--concurrency", 32).stdout
    assert re.search(r"fits +no: [\d.]+ GiB are missing", printed)
    assert "the nearest that fits: --quant" in printed


def test_a_saved_answer_is_the_record(residency: Residency) -> None:
    text = residency("plan", "llama-3.1-8b", "--on", "rtx4090", "--json").stdout
    assert AnswerRecord.from_json(text).to_json() == text


def test_what_the_engine_promises_is_told_beside_what_is_kept(residency: Residency) -> None:
    plan = residency("plan", "gemma-2-9b", "--on", "H100-80GB", "--context", 8192, "--concurrency", 25)
    assert "yes, by the bytes that are kept; vllm-0.19" in plan.stdout
