import pytest

from residency.errors import UsageError
from residency.units import (
    binary_bytes,
    count,
    decimal_bytes,
    enough_mib,
    mib,
    operations_rate,
    parse_bytes,
    rate,
    seconds,
)


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("400MiB", 400 * 1024**2),
        ("2GiB", 2 * 1024**3),
        ("600MB", 600_000_000),
        ("1.5 GB", 1_500_000_000),
        ("0.5KiB", 512),
        ("4096B", 4096),
        (" 1 TiB ", 1024**4),
        ("3kB", 3000),
        ("400mib", 400 * 1024**2),
    ],
)
def test_an_amount_with_a_clear_unit_is_read(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["400", "400M", "2G", "2Gi", "400Mb", "12 parsecs", "1PB"])
def test_an_unclear_unit_is_refused_with_units_that_are_clear(text: str) -> None:
    with pytest.raises(UsageError, match=r"write .*iB.* or .*B"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["", "MiB", "-1MiB", "1e9B", "nan MiB", "1,5GB", "١MiB", "9" * 5000 + "B"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not an amount of memory"):
        parse_bytes(text)


def test_more_memory_than_any_machine_has_is_refused() -> None:
    with pytest.raises(UsageError, match="more memory than any machine has"):
        parse_bytes("99999999999TiB")


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (400 * 1024**2, "400 MiB"), (3 * 1024**3 // 2, "1.50 GiB")],
)
def test_bytes_print_in_powers_of_1024(num_bytes: int, text: str) -> None:
    assert binary_bytes(num_bytes) == text


def test_a_scale_is_left_before_it_would_round_to_its_end() -> None:
    assert binary_bytes(1024**2 - 1) == "1.0 MiB"


@pytest.mark.parametrize("num_bytes", [1, 1023, 1024**2 - 1, 123_456_789, 2**40])
def test_what_is_printed_is_read_back_within_a_hundredth(num_bytes: int) -> None:
    assert parse_bytes(binary_bytes(num_bytes)) == pytest.approx(num_bytes, rel=0.01)


def test_mebibytes_stay_mebibytes() -> None:
    assert (mib(97_936_998), mib(2 * 1024**3)) == ("93.4 MiB", "2048 MiB")


def test_enough_mebibytes_are_never_too_few() -> None:
    assert parse_bytes(enough_mib(400 * 1024**2 + 1)) == 401 * 1024**2


def test_rates_are_decimal() -> None:
    assert (decimal_bytes(98_100_000), rate(36.5e9), operations_rate(412e9)) == ("98.1 MB", "36.5 GB/s", "412 Gop/s")


def test_durations_and_counts_print_for_people() -> None:
    printed = [seconds(125), seconds(1.5), seconds(0.0123), seconds(2e-6), count(134_515_008), count(49152)]
    assert printed == ["2 min 5 s", "1.5 s", "12.3 ms", "2.0 us", "134.5 M", "49152"]
