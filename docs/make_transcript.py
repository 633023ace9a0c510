"""Run the README's first command, without the installation, and put what it prints into the README.

python docs/make_transcript.py       run it on a quiet machine, twice: the first run ever also compiles and converts
"""

import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
COLUMNS = 119


def main() -> None:
    """Replace the block after the first command."""
    text = README.read_text(encoding="utf-8")
    match = re.search(r"^```sh\n.* && (residency run .*)\n```\n\n```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert match, "the README's first command is followed by a block with what it prints"
    command = [sys.executable, "-m", *shlex.split(match[1])]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    lines = [part for line in printed.splitlines() for part in _wrapped(line)]
    block = "\n".join([f"$ {match[1]}", *lines, ""])
    README.write_text(text[: match.start(2)] + block + text[match.end(2) :], encoding="utf-8")


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, COLUMNS, break_long_words=False, break_on_hyphens=False) or [""]


if __name__ == "__main__":
    main()
