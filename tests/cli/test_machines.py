import json
from pathlib import Path

import pytest

from residency.hardware import Machine
from residency.hardware.written import parse_machine
from support.command import Residency


def test_the_catalog_is_listed_with_what_a_driver_leaves(residency: Residency) -> None:
    (line,) = (line for line in residency("machines").stdout.splitlines() if line.startswith("H100-80GB "))
    assert line.split()[1:8] == ["80.0", "GiB", "79.2", "GiB", "3.35", "TB/s", "989"]


def test_the_catalog_in_json_holds_every_table(residency: Residency) -> None:
    facts = json.loads(residency("machines", "--json").stdout)
    assert set(facts) == {"devices", "hosts", "tiers", "links"}


def test_a_machine_in_json_is_the_machine(residency: Residency) -> None:
    printed = residency("machines", "2xh100", "--json").stdout
    assert Machine.from_json(printed) == parse_machine("2xh100")


def test_a_machine_in_words_names_its_sources(residency: Residency) -> None:
    assert "whitepaper v1.04" in residency("machines", "2xh100").stdout


def test_a_printed_file_describes_the_same_machine(residency: Residency, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(residency("machines", "rtx4090", "--ram", "96GB", "--toml").stdout)
    assert (
        residency("machines", path, "--json").stdout
        == residency("machines", "rtx4090", "--ram", "96GB", "--json").stdout
    )


def test_this_machine_is_as_it_was_measured(residency: Residency) -> None:
    assert json.loads(residency("machines", "this", "--json").stdout)["measured_unix_seconds"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("rtx4070",), "the nearest are RTX-4"),
        (("0xh100",), "a machine has 1 to 1024"),
        (("h100", "--ram", "64G"), "can be read in two ways"),
        (("h100", "--toml", "--json"), "cannot go together"),
        (("--toml",), "name one, such as 2xH100-80GB"),
        (("this", "--ram", "64GB"), "as it was measured"),
    ],
)
def test_a_question_that_cannot_be_meant_is_refused(
    residency: Residency, arguments: tuple[str, ...], sentence: str
) -> None:
    result = residency("machines", *arguments)
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1 and sentence in result.stderr
