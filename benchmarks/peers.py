"""residency beside its peers on this machine: whole processes, interleaved (A B A B ...), as ratios of medians.

    python benchmarks/peers.py MODEL.gguf [MODEL.gguf ...] [--rounds 5] [--tasks short,long,batch] [--record]

Installs the peers into an environment of their own under the cache folder (llama.cpp is built from source: about ten
minutes, once). Writes benchmarks/results/<machine>/<model>.json, and exits with 1 where a ratio has fallen under its
floor in benchmarks/floors.json by more than the noise. Run it with the Python that has residency.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from ratios import fallen, medians, ratios, recorded, to_data

from residency.paths import cache_folder

HERE = Path(__file__).parent
FLOORS = HERE / "floors.json"
RESULT_VERSION = 2
TASKS = ("short", "long", "batch")
LLAMA_CPP, OPENVINO = "llama-cpp-python", "openvino-genai"
# Where a processor names instructions that its hypervisor forbids (AMX), a native build dies of them: then these.
PORTABLE_FLAGS = {
    "avx": "AVX", "avx2": "AVX2", "bmi2": "BMI2", "fma": "FMA", "f16c": "F16C", "avx512f": "AVX512",
    "avx512vbmi": "AVX512_VBMI", "avx512_vnni": "AVX512_VNNI", "avx512_bf16": "AVX512_BF16",
}  # fmt: skip


def main() -> None:
    """Measure, print, write, and compare with the floors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decode-tokens", type=int, default=64)
    parser.add_argument("--tasks", default=",".join(TASKS), help="which of short, long and batch")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peer-python", type=Path, help="an environment that has the peers already")
    parser.add_argument("--record", action="store_true", help="make these ratios the floors")
    asked = parser.parse_args()
    asked.tasks = asked.tasks.split(",")
    if not set(asked.tasks) <= set(TASKS) or asked.rounds < 1:
        parser.error(f"--tasks takes some of {','.join(TASKS)}, and --rounds at least 1")
    peer = asked.peer_python or install_peers(asked.models[0])
    problems = []
    for model in asked.models:
        runs, left_out = compare(model, peer, asked)
        problems += finish(model, runs, left_out, asked)
    for problem in problems:
        print(f"under its floor: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


def compare(model: Path, peer: Path, asked: argparse.Namespace) -> tuple[dict[str, Any], dict[str, str]]:
    """All sides in turn, `rounds` times; and why sides that cannot run were left out."""
    sides = {"residency": (sys.executable, "residency_side.py"), "llama.cpp": (str(peer), "llama_cpp_side.py")}
    left_out = {}
    options = ["--decode-tokens", str(asked.decode_tokens), "--threads", str(asked.threads)]

    def run(side: str, task: str) -> dict[str, float]:
        python, script = sides[side]
        return run_side([python, str(HERE / script), str(model), "--task", task, *options])

    run("residency", asked.tasks[0])  # converts and compiles
    sides["OpenVINO"] = (str(peer), "openvino_side.py")
    try:
        run("OpenVINO", "short")
    except RuntimeError as error:
        left_out["OpenVINO"] = str(error)
        del sides["OpenVINO"]
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for number in range(asked.rounds):
        for each in runs.values():
            each.append({})
        for task in asked.tasks:
            for side in sides:
                if side == "OpenVINO" and task != "short":
                    continue
                print(f"{model.name}: round {number + 1} of {asked.rounds}, {task}, {side}", file=sys.stderr)
                runs[side][-1].update(run(side, task))
    return {side: rounds for side, rounds in runs.items() if rounds[0]}, left_out


def run_side(command: list[str]) -> dict[str, float]:
    """One process; its JSON. RuntimeError where it fails."""
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        last = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{Path(command[1]).name} failed ({finished.returncode}): {last[-200:]}")
    return dict(json.loads(finished.stdout.splitlines()[-1]))


def finish(model: Path, runs: dict[str, Any], left_out: dict[str, str], asked: argparse.Namespace) -> list[str]:
    """Print and write one model's result; what has fallen under its floor."""
    found, here = ratios(runs), machine()
    result = {
        "version": RESULT_VERSION,
        "model": model.name,
        "machine": here,
        "threads": asked.threads,
        "rounds": asked.rounds,
        "decode_tokens": asked.decode_tokens,
        "medians": medians(runs),
        "ratios": to_data(found),
        "left_out": {
            side: "not installed" if "ModuleNotFoundError" in why else "does not run this model"
            for side, why in left_out.items()
        },
        "runs": runs,
    }
    print(f"\n{model.name}, {asked.threads} threads, {asked.rounds} rounds; medians, and residency over each peer")
    for each in found:
        print(f"  {each.name:32}{each.median:7.2f}x   ({each.least:.2f} to {each.most:.2f})")
    share = medians(runs)["residency"].get("share_of_bandwidth")
    if share is not None:
        print(f"  {'share of bandwidth in decode':32}{share:7.0%}")
    for side, reason in left_out.items():
        print(f"  {side} is left out: {reason}")
    folder = HERE / "results" / str(here["name"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{model.stem}.json").write_text(json.dumps(result, indent=1) + "\n")
    return hold(found, here["name"], model.name, record=asked.record)


def hold(found: list[Any], machine_name: str, model: str, *, record: bool) -> list[str]:
    """Compare with the floors of this machine and model, or make them."""
    floors = json.loads(FLOORS.read_text()) if FLOORS.exists() else {}
    mine = floors.setdefault(machine_name, {}).setdefault(model, {})
    if record:
        mine.update(recorded(found))
        FLOORS.write_text(json.dumps(floors, indent=1, sort_keys=True) + "\n")
        return []
    return [f"{model}: {problem}" for problem in fallen(found, mine)]


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
    check = [str(python), str(HERE / "llama_cpp_side.py"), str(model), "--task", "short"]
    check += ["--decode-tokens", "2", "--threads", "1"]
    if python.exists() and subprocess.run(check, capture_output=True, check=False).returncode == 0:
        return python
    venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "-q"]
    if subprocess.run([*pip, OPENVINO], check=False).returncode:
        print(f"{OPENVINO} could not be installed; it will be left out.", file=sys.stderr)
    for cmake_flags in ("", portable_flags()):
        print(f"building {LLAMA_CPP} from source ({cmake_flags or 'default flags'}) ...", file=sys.stderr)
        command = [*pip, "--no-cache-dir", "--force-reinstall", "--no-binary", LLAMA_CPP, LLAMA_CPP]
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
