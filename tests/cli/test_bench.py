"""What `residency bench` prints, and what it refuses."""

import json
from pathlib import Path

from support.command import Residency

BRIEFLY = ("--memory", "300MiB", "--prompt", 16, "--context", 8, "--batch", 2, "--decode-tokens", 2, "--repeat", 1)


def test_a_bench_has_a_line_for_each_measurement(residency: Residency, model_path: Path) -> None:
    lines = residency("bench", model_path, *BRIEFLY).stdout.splitlines()
    assert [line[:14].strip() for line in lines[-3:]] == ["prefill 16", "decode after 8", "decode x2"]


def test_a_bench_in_json_is_one_object(residency: Residency, model_path: Path) -> None:
    data = json.loads(residency("bench", model_path, *BRIEFLY, "--json").stdout)
    assert [each["kind"] for each in data["speeds"]] == ["prefill", "decode", "decode"]


def test_the_roofline_is_drawn_where_asked(residency: Residency, model_path: Path, tmp_path: Path) -> None:
    residency("bench", model_path, *BRIEFLY, "--svg", tmp_path / "roofline.svg")
    assert (tmp_path / "roofline.svg").read_text().startswith("<svg ")


def test_progress_is_not_part_of_the_output(residency: Residency, model_path: Path) -> None:
    result = residency("bench", model_path, "--prompt", 16, "--repeat", 1, "--memory", "300MiB", "--json")
    assert "prefill of 16 tokens" in result.stderr and result.stdout.startswith("{")


def test_a_profile_names_kernels(residency: Residency, model_path: Path) -> None:
    printed = residency("bench", model_path, "--profile", "--context", 20, "--memory", "300MiB").stdout
    assert printed.startswith("decode after 20 tokens: ") and "attention.attend" in printed


def test_a_profile_in_json_has_shares_that_add_up(residency: Residency, model_path: Path) -> None:
    arguments = ("bench", model_path, "--profile", "--prompt", 20, "--memory", "300MiB", "--json")
    (profile,) = json.loads(residency(*arguments).stdout)["profiles"]
    assert abs(sum(each["share_of_step"] for each in profile["operators"]) - 1) < 1e-9


def test_what_is_no_number_is_refused(residency: Residency, model_path: Path) -> None:
    result = residency("bench", model_path, "--batch", "1,two")
    assert result.exit_code == 2 and "'1,two'" in result.stderr


def test_a_profile_draws_nothing(residency: Residency, model_path: Path, tmp_path: Path) -> None:
    assert residency("bench", model_path, "--profile", "--svg", tmp_path / "x.svg").exit_code == 2


def test_a_sweep_refuses_a_budget_of_its_own(residency: Residency, model_path: Path) -> None:
    result = residency("bench", model_path, "--sweep-memory", "--memory", "400MiB")
    assert result.exit_code == 2 and "--sweep-memory chooses budgets and prompts itself" in result.stderr
