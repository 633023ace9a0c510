"""Write the serving table of docs/performance.md from benchmarks/results: `python benchmarks/serving_table.py`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from readme_table import HERE, placed

PAGE = HERE.parent / "docs" / "performance.md"
BEGIN, END = "<!-- serving:begin -->", "<!-- serving:end -->"
ROWS = (  # of each a label, and how its cells are made of figures
    (
        "16 requests of 256 + 128 tokens together, output over one alone",
        "**{together_over_one:.2f}x** ({together_tokens_per_second:.0f} / {one_tokens_per_second:.0f} tok/s)",
    ),
    (
        "first token after 1,056 tokens, own over 1,024 shared",
        "**{own_over_shared:.1f}x** ({own_prefix_first_token_seconds:.3f} / {shared_prefix_first_token_seconds:.3f} s)",
    ),
    (
        "answers of 16 to 512 tokens, continuous over static batching",
        "**{continuous_over_static:.2f}x** ({continuous_tokens_per_second:.0f} / {static_tokens_per_second:.0f} tok/s)",
    ),
    (
        "first token of a short prompt beside one of 4,096, in chunks",
        "**{short_prompt_chunks:.2f}** ({short_prompt_first_token_seconds:.3f} s; {chunk_tokens:.0f} tokens a chunk)",
    ),
    (
        "scheduler and HTTP, of a step of 16",
        "**{overhead_share_of_step:.1%}** ({scheduler_share_of_step:.1%} + {http_share_of_step:.1%} of "
        "{step_milliseconds:.1f} ms)",
    ),
)


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """One machine's results as Markdown: a column for each server, a row for each measure."""
    names = [str(result["server"]) for result in results]
    lines = ["| | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for label, cell in ROWS:
        cells = [_filled(cell, result["medians"]) for result in results]
        if any(cell != "–" for cell in cells):
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    machine = results[0]["machine"]
    return (
        "\n".join(lines)
        + f"\n\nBy clients on the same {machine['threads']} threads of an {machine['processor']}. Made again by "
        + "`python benchmarks/serving.py MODEL.gguf`, and this table by `python benchmarks/serving_table.py`."
    )


def _filled(cell: str, medians: Mapping[str, float]) -> str:
    try:
        return cell.format(**medians)
    except KeyError:
        return "–"


def results_by_machine(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The results of serving.py by machine."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*/serving-*.json"), reverse=True):
        found.setdefault(path.parent.name, []).append(json.loads(path.read_text()))
    return found


def main() -> None:
    """Write the page; without results, nothing."""
    found = results_by_machine(HERE / "results")
    if not found:
        raise SystemExit("there are no results yet; run benchmarks/serving.py first.")
    text = "\n\n".join(table(results) for results in found.values())
    PAGE.write_text(placed(PAGE.read_text("utf-8"), text, begin=BEGIN, end=END), "utf-8")


if __name__ == "__main__":
    main()
