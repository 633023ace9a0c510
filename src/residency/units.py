"""Bytes, rates, seconds and counts: parsed at the edge, printed for people.

Binary units (KiB, MiB, GiB, TiB) are powers of 1024, decimal ones (kB, MB, GB, TB) powers of 1000: IEC 80000-13.
"""

import re
from fractions import Fraction

from residency.errors import UsageError

_PREFIXES = ("K", "M", "G", "T")
_UNIT_BYTES = {"B": 1}
for _power, _prefix in enumerate(_PREFIXES, start=1):
    _UNIT_BYTES[f"{_prefix}iB"] = 1024**_power
    _UNIT_BYTES[f"{_prefix}B"] = 1000**_power
_UNIT_BYTES["kB"] = 1000
_UNIT_BYTES |= {unit.lower(): factor for unit, factor in _UNIT_BYTES.items()}

_QUANTITY = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([A-Za-z]*)", re.ASCII)
_LARGEST_BYTES = 2**63 - 1


def parse_bytes(text: str) -> int:
    """The bytes that "400MiB", "1.5 GB" or "4096 B" name, rounded down to whole bytes.

    A number without a unit, and units that two readers read differently ("400M", "400Mb"), are a UsageError.
    """
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text[:40]!r} is not an amount of memory; write a number and a unit, such as 400MiB or 2GB.")
    number, unit = match.groups()
    if unit not in _UNIT_BYTES:
        raise UsageError(_refused_unit(number, unit))
    num_bytes = int(Fraction(number) * _UNIT_BYTES[unit])
    if num_bytes > _LARGEST_BYTES:
        raise UsageError(
            f"{text[:40]!r} is more memory than any machine has; the most is {_LARGEST_BYTES // 1024**4} TiB."
        )
    return num_bytes


def _refused_unit(number: str, unit: str) -> str:
    if not unit:
        return f"{number!r} has no unit; write {number}MiB (1024² bytes) or {number}MB (1000² bytes)."
    prefix = unit[0].upper()
    if prefix not in _PREFIXES or len(unit) > 3:
        return f"{unit!r} is no unit of memory; write {number}MiB or {number}MB (K, M, G and T are known)."
    return (
        f"{number + unit!r} can be read in two ways; write {number}{prefix}iB (powers of 1024) "
        f"or {number}{prefix}B (powers of 1000)."
    )


def binary_bytes(num_bytes: int) -> str:
    """For people, in powers of 1024: "93.4 MiB", "400 MiB", "1.50 GiB"."""
    return _scaled(num_bytes, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def decimal_bytes(num_bytes: int | float) -> str:
    """For people, in powers of 1000, as bandwidth is given: "98.1 MB"."""
    return _scaled(num_bytes, 1000, ("B", "kB", "MB", "GB", "TB"))


def mib(num_bytes: int) -> str:
    """Always in MiB, so that figures of one line compare: "93.4 MiB", "1240 MiB"."""
    amount = num_bytes / 1024**2
    return f"{amount:.0f} MiB" if amount >= 99.95 else f"{amount:.1f} MiB"


def enough_mib(num_bytes: int) -> str:
    """The smallest whole number of MiB that holds `num_bytes`, as an option takes it: "401MiB"."""
    return f"{-(-num_bytes // 1024**2)}MiB"


def rate(bytes_per_second: float) -> str:
    """Bandwidth, in powers of 1000: "36.5 GB/s"."""
    return decimal_bytes(bytes_per_second) + "/s"


def operations_rate(operations_per_second: float) -> str:
    """Arithmetic, in powers of 1000: "412 Gop/s"."""
    return _scaled(operations_per_second, 1000, ("op", "kop", "Mop", "Gop", "Top", "Pop")) + "/s"


def seconds(duration_seconds: float) -> str:
    """A duration: "12.3 ms", "1.5 s", "2 min 5 s"."""
    if duration_seconds >= 60:
        minutes, rest = divmod(round(duration_seconds), 60)
        return f"{minutes} min {rest} s"
    if duration_seconds >= 1:
        return f"{duration_seconds:.1f} s"
    if duration_seconds >= 1e-3:
        return f"{duration_seconds * 1e3:.1f} ms"
    return f"{duration_seconds * 1e6:.1f} us"


def count(number: int) -> str:
    """A count of things: "134.5 M", "49152"."""
    for factor, suffix in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if number >= factor:
            return f"{number / factor:.1f} {suffix}"
    return str(number)


def _scaled(amount: float, base: int, names: tuple[str, ...]) -> str:
    step = 0
    while step + 1 < len(names) and amount >= base * 0.9995:
        amount /= base
        step += 1
    if step == 0:
        return f"{amount:.0f} {names[0]}"
    decimals = 0 if amount >= 99.95 else 1 if amount >= 9.995 or step < 3 else 2
    return f"{amount:.{decimals}f} {names[step]}"
