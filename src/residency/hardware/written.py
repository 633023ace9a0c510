"""Machines as people write them: "2xH100-80GB", "rtx4090 + nvme-gen5", or the path of a TOML file."""

import difflib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from residency.errors import MachineError
from residency.hardware.assembly import assembled
from residency.hardware.catalog import Catalog, Part, load_catalog
from residency.hardware.machine import MAX_DEVICES, Machine, Tier
from residency.units import binary_bytes

_WRITTEN = re.compile(r"(?:([0-9]{1,9})\s*[xX×*]\s*)?(\S.{0,80})", re.ASCII | re.DOTALL)
_PLUS = re.compile(r"\s\+\s|\+(?=\S)")  # not the one in "Ryzen AI Max+ 395"
_MAKERS = re.compile(r"\b(?:nvidia|geforce|tesla|quadro|amd|instinct|radeon|apple|intel)\b")


def parse_machine(text: str, *, ram_bytes: int | None = None, disk_bytes: int | None = None) -> Machine:
    """The machine that `text` writes: parts of the catalog joined by "+", each with a count before it or none; or the
    path of a TOML file.

    `ram_bytes` and `disk_bytes` replace the size of the host's RAM and disk. MachineError for a name that nothing has,
    with the nearest; for a count that no machine has; for a file that cannot be meant.
    """
    if text.lower().endswith(".toml") or "/" in text:
        return _resized(_from_file(Path(text)), ram_bytes, disk_bytes)
    catalog = load_catalog()
    counts: Counter[str] = Counter()
    for written in _PLUS.split(text):
        name, count = _counted(catalog, written.strip(), ram_bytes)
        counts[name] += count
        if not 1 <= counts[name] <= MAX_DEVICES or not count:
            raise MachineError(f"{text[:80]!r} asks for {counts[name]} × {name}; a machine has 1 to {MAX_DEVICES}.")
    return _resized(assembled(text.strip(), catalog, counts), ram_bytes, disk_bytes)


def _from_file(path: Path) -> Machine:
    try:
        text = path.read_text("utf-8")
    except ValueError:
        raise MachineError(f"{path} is not TOML: it is no text; compare it with residency machines --toml.") from None
    except OSError as error:
        raise MachineError(f"{path} cannot be read ({error.strerror}); give the path of a machine's file.") from None
    return Machine.from_toml(text, what=str(path))


def _counted(catalog: Catalog, written: str, ram_bytes: int | None) -> tuple[str, int]:
    """The name of a part, and how many of it."""
    match = _WRITTEN.fullmatch(written)
    if match is None:
        raise MachineError(f"{written[:80]!r} is no machine; write one such as 2xH100-80GB, or see residency machines.")
    return find_part(catalog, match[2], ram_bytes=ram_bytes), int(match[1] or 1)


def find_part(catalog: Catalog, written: str, *, ram_bytes: int | None = None) -> str:
    """The name of the part that `written` names, whatever its case and dashes; MachineError with the nearest if none.

    A device sold with several sizes of unified memory is told apart by `ram_bytes`.
    """
    known = _names(catalog.parts())
    wanted = _plain(written)
    if wanted in known:
        return known[wanted]
    sizes = {
        name: part
        for name, part in catalog.devices.items()
        if any(re.fullmatch(rf"{re.escape(wanted)}\d+gb", _plain(each)) for each in (name, *part.aliases))
    }
    fitting = [name for name, part in sizes.items() if _is_size(ram_bytes, part.memory_sizes[0].listed_bytes)]
    if fitting:
        return fitting[0]
    if sizes:
        raise MachineError(f"{written!r} comes with several sizes of memory; write one of {', '.join(sizes)}.")
    near = difflib.get_close_matches(wanted, known, n=8, cutoff=0.5) or [each for each in known if wanted[:3] in each]
    names = list(dict.fromkeys(known[each] for each in near))[:4]
    advice = f"the nearest are {', '.join(names)}" if names else "residency machines lists those that are"
    raise MachineError(f"the catalog has no machine {written[:80]!r}; {advice}.")


def _is_size(asked_bytes: int | None, listed_bytes: int) -> bool:
    """Whether somebody who asks for so much, in powers of 1000 or 1024, means a listed size."""
    return asked_bytes in (listed_bytes, listed_bytes // 1024**3 * 10**9)


def _names(parts: Mapping[str, Part]) -> dict[str, str]:
    """The name of each part by every way to write it."""
    return {_plain(each): name for name, part in parts.items() for each in (name, *part.aliases)}


def _plain(name: str) -> str:
    """A name without case, dashes and its maker."""
    return re.sub(r"[^a-z0-9]", "", _MAKERS.sub("", name.lower()))


def _resized(machine: Machine, ram_bytes: int | None, disk_bytes: int | None) -> Machine:
    """The same machine with that much RAM and disk, in which as large a part is free as before."""
    for device in machine.devices if ram_bytes is not None else ():
        if device.kind == "unified":
            if not _is_size(ram_bytes, device.listed_bytes):
                shared = binary_bytes(device.listed_bytes)
                raise MachineError(
                    f"{device.name} shares its {shared} with the host; leave --ram away, or name another."
                )
            ram_bytes = None
    asked = {"ram": ram_bytes, "disk": disk_bytes}
    return replace(machine, tiers=tuple(_of_size(tier, asked.get(tier.kind)) for tier in machine.tiers))


def _of_size(tier: Tier, asked_bytes: int | None) -> Tier:
    if asked_bytes is None:
        return tier
    if asked_bytes < 1:
        raise MachineError(f"a machine with 0 B of {tier.name} cannot run; give --{tier.kind} a size.")
    free_bytes = tier.available_bytes * asked_bytes // max(1, tier.capacity_bytes)
    return replace(tier, capacity_bytes=asked_bytes, available_bytes=free_bytes)
