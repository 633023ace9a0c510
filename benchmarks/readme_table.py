"""Write the tables of README.md and docs/performance.md from benchmarks/results: `python benchmarks/readme_table.py`.

A page that has no markers yet gets them before its heading "## Read on", or at its end.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGES = (HERE.parent / "README.md", HERE.parent / "docs" / "performance.md")
BEGIN, END = "<!-- performance:begin -->", "<!-- performance:end -->"
HEADING = "## Read on"
ROWS = {
    ("decode_short", "llama.cpp"): "decode, short context",
    ("decode_4096", "llama.cpp"): "decode after 4,096 tokens",
    ("prefill_512", "llama.cpp"): "prefill of 512",
    ("prefill_512", "OpenVINO"): "prefill of 512",
    ("batch_8", "llama.cpp"): "8 sequences together",
    ("peak_bytes", "llama.cpp"): "peak memory",
}


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """One machine's results as Markdown: a column for each model, a row for each measure and peer."""
    names = [str(result["model"]).removesuffix(".gguf") for result in results]
    lines = ["| | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for (measure, peer), label in ROWS.items():
        cells = [_cell(result, measure, peer) for result in results]
        if any(cell != "–" for cell in cells):
            lines.append(f"| {label}, over {peer} | " + " | ".join(cells) + " |")
    shares = [result["medians"]["residency"].get("share_of_bandwidth") for result in results]
    if any(share is not None for share in shares):
        cells = ["–" if share is None else f"{share:.0%}" for share in shares]
        lines.append("| decode's share of the read bandwidth | " + " | ".join(cells) + " |")
    first = results[0]
    rounds = " or ".join(str(each) for each in sorted({result["rounds"] for result in results}))
    return (
        "\n".join(lines)
        + f"\n\nMedians of {rounds} interleaved rounds on {first['threads']} threads of an "
        + f"{first['machine']['processor']}: residency over the peer, both figures in brackets. Made again by "
        + "`python benchmarks/peers.py MODEL.gguf`, and this table by `python benchmarks/readme_table.py`."
    )


def _cell(result: Mapping[str, Any], measure: str, peer: str) -> str:
    for each in result["ratios"]:
        if (each["measure"], each["peer"]) == (measure, peer):
            ours, theirs = (result["medians"][side][measure] for side in ("residency", peer))
            if measure == "peak_bytes":
                return f"**{each['median']:.2f}x** ({ours / 1e6:.0f} / {theirs / 1e6:.0f} MB)"
            return f"**{each['median']:.2f}x** ({ours:.0f} / {theirs:.0f} tok/s)"
    return "–"


def placed(page: str, text: str, *, begin: str = BEGIN, end: str = END) -> str:
    """The page with `text` between its markers, which are put where there are none."""
    block = f"{begin}\n{text}\n{end}"
    if begin in page and end in page:
        before, _, rest = page.partition(begin)
        return before + block + rest.partition(end)[2]
    if HEADING in page:
        before, _, after = page.partition(HEADING)
        return f"{before}## Speed\n\n{block}\n\n{HEADING}{after}"
    return f"{page.rstrip()}\n\n{block}\n"


def results_by_machine(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The results of peers.py by machine, small models first; other files are not looked at."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*/*.json")):
        result = json.loads(path.read_text())
        if result.get("version") == 2:
            found.setdefault(path.parent.name, []).append(result)
    for results in found.values():
        results.sort(key=lambda result: result["medians"]["residency"].get("peak_bytes", 0))
    return found


def main() -> None:
    """Write all pages; without results, nothing."""
    found = results_by_machine(HERE / "results")
    if not found:
        raise SystemExit("there are no results yet; run benchmarks/peers.py first.")
    text = "\n\n".join(table(results) for results in found.values())
    for page in PAGES:
        page.write_text(placed(page.read_text("utf-8"), text), "utf-8")


if __name__ == "__main__":
    main()
