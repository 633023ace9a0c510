"""residency beside its peers on this machine: whole processes, interleaved (A B A B ...), as ratios of medians.

    python benchmarks/peers.py MODEL.gguf [MODEL.gguf ...] [--rounds 5] [--prompt-tokens 512] [--decode-tokens 64]

Installs the peers into an environment of their own under the cache folder (llama.cpp is built from source: about ten
minutes, once). Writes benchmarks/results/<machine>/<model>.json. Run it with the Python that has residency.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from residency.paths import cache_folder

HERE = Path(__file__).parent
LLAMA_CPP = "llama-cpp-python"
# Where a processor names instructions that its hypervisor forbids (AMX), a native build dies of them: then these.
PORTABLE_FLAGS = {
    "avx": "AVX", "avx2": "AVX2", "bmi2": "BMI2", "fma": "FMA", "f16c": "F16C", "avx512f": "AVX512",
    "avx512vbmi": "AVX512_VBMI", "avx512_vnni": "AVX512_VNNI", "avx512_bf16": "AVX512_BF16",
}  # fmt: skip
METRICS = ("prefill_tokens_per_second", "decode_tokens_per_second", "peak_bytes")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--decode-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peer-python", type=Path, help="an environment that has the peers already")
    asked = parser.parse_args()
    peer = asked.peer_python or install_peers(asked.models[0])
    for model in asked.models:
        result = compare(model, peer, asked)
        print_table(result)
        write(result)


def compare(model: Path, peer: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turn, `rounds` times."""
    sides = {"residency": [sys.executable, str(HERE / "residency_side.py")]}
    sides["llama.cpp"] = [str(peer), str(HERE / "llama_cpp_side.py")]
    amounts = {
        "prompt_tokens": asked.prompt_tokens,
        "decode_tokens": asked.decode_tokens,
        "threads": asked.threads,
    }
    options = [word for name, value in amounts.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    run_side([*sides["residency"], str(model), *options])  # converts and compiles
    for round_number in range(asked.rounds):
        for name, command in sides.items():
            print(f"{model.name}: round {round_number + 1} of {asked.rounds}, {name} ...", end="\r", file=sys.stderr)
            runs[name].append(run_side([*command, str(model), *options]))
    ratios = {metric: ratio(runs, metric) for metric in METRICS}
    command = f"python benchmarks/peers.py {model.name} --rounds {asked.rounds} " + " ".join(options)
    return {"model": model.name, "machine": machine(), "command": command, **amounts, "runs": runs, "ratios": ratios}


def run_side(command: list[str]) -> dict[str, float]:
    """One process; its JSON."""
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(f"{' '.join(command)} failed ({finished.returncode}): {finished.stderr.strip()[-400:]}")
    return dict(json.loads(finished.stdout.splitlines()[-1]))


def ratio(runs: dict[str, list[dict[str, float]]], metric: str) -> dict[str, float]:
    """residency over llama.cpp: of the medians, and the smallest and largest of the rounds' own."""
    ours, theirs = ([run[metric] for run in runs[name]] for name in ("residency", "llama.cpp"))
    rounds = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(ours) / statistics.median(theirs), "least": min(rounds), "most": max(rounds)}


def print_table(result: dict[str, Any]) -> None:
    """The medians and the ratios."""
    print(f"\n{result['model']}: prompt {result['prompt_tokens']}, {result['threads']} threads")
    print(f"  {'':28}{'residency':>12}{'llama.cpp':>12}{'ratio':>9}   (least to most)")
    for metric in METRICS:
        medians = [statistics.median(run[metric] for run in result["runs"][name]) for name in result["runs"]]
        scale, unit = (1e6, "MB") if metric == "peak_bytes" else (1, "tok/s")
        each = result["ratios"][metric]
        label = f"{metric.split('_')[0]} {unit}"
        print(
            f"  {label:28}{medians[0] / scale:12.1f}{medians[1] / scale:12.1f}{each['median']:8.2f}x"
            f"   ({each['least']:.2f} to {each['most']:.2f})"
        )


def write(result: dict[str, Any]) -> None:
    """Keep the result under the machine's name."""
    folder = HERE / "results" / str(result["machine"]["name"])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{Path(result['model']).stem}-{result['prompt_tokens']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"  written to {path.relative_to(HERE.parent)}")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo").read_text()
    model = (re.search(r"model name\s*: (.*)", info) or ["", platform.processor()])[1]
    flags = (re.search(r"flags\s*: (.*)", info) or ["", ""])[1].split()
    best = next((flag for flag in ("avx512_vnni", "avx_vnni", "avx2") if flag in flags), "portable")
    name = re.sub(r"[^a-z0-9]+", "-", f"{model} {best} {os.cpu_count()} threads".lower()).strip("-")
    return {"name": name, "processor": model, "threads": os.cpu_count(), "python": platform.python_version()}


def install_peers(model: Path) -> Path:
    """The Python of the peers' environment, made where it is missing."""
    folder = cache_folder() / "peers"
    python = folder / "bin" / "python"
    check = [str(python), str(HERE / "llama_cpp_side.py"), str(model)]
    check += ["--prompt-tokens", "8", "--decode-tokens", "2", "--threads", "1"]
    if python.exists() and subprocess.run(check, capture_output=True, check=False).returncode == 0:
        return python
    venv.create(folder, with_pip=True)
    for cmake_flags in ("", portable_flags()):
        print(f"building {LLAMA_CPP} from source ({cmake_flags or 'default flags'}) ...", file=sys.stderr)
        command = [str(python), "-m", "pip", "install", "-q", "--no-cache-dir", "--force-reinstall", LLAMA_CPP]
        subprocess.run(command, check=True, env={**os.environ, "CMAKE_ARGS": cmake_flags})
        if subprocess.run(check, capture_output=True, check=False).returncode == 0:
            return python
    raise SystemExit(f"{LLAMA_CPP} was built but does not run here: {' '.join(check)}")


def portable_flags() -> str:
    """CMake flags for what the processor names, without a native build."""
    flags = (re.search(r"flags\s*: (.*)", Path("/proc/cpuinfo").read_text()) or ["", ""])[1].split()
    return " ".join(
        ["-DGGML_NATIVE=OFF", *(f"-DGGML_{name}=ON" for flag, name in PORTABLE_FLAGS.items() if flag in flags)]
    )


if __name__ == "__main__":
    main()
