"""What a machine can check of how this project is laid out and written."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import residency.errors

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "residency"
MODULES = sorted(SOURCE.rglob("*.py"))
PACKAGES = sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
DRIVERS = {"step", "stream"}  # native loops that Python or the probe starts; they compute nothing to compare
KNOWN_SITES = {
    "www.w3.org",  # the namespace of SVG
    "arxiv.org",
    "github.com",
    "huggingface.co",
    "doi.org",
    "pypi.org",
    "download.pytorch.org",
    "keepachangelog.com",
    "localhost",
    "127.0.0.1",
}
LATE = {"numba", "llvmlite", "torch", "triton", "rich", "tokenizers", "huggingface_hub", "transformers"}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef
TREES = {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}


def statements(node: ast.AST) -> Iterator[ast.stmt]:
    """The statements in a function; those of a function inside it are its own."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield child
        if not isinstance(child, Function):
            yield from statements(child)


def public(body: list[ast.stmt]) -> list[Definition]:
    return [node for node in body if isinstance(node, Definition) and not node.name.startswith("_")]


def undocumented(tree: ast.Module) -> Iterator[str]:
    """Public functions, classes and methods without a docstring. What a class with bases or a protocol's
    implementation promises is written there.
    """
    for node in public(tree.body):
        if not ast.get_docstring(node):
            yield node.name
        if isinstance(node, ast.ClassDef) and not node.bases:
            for method in public(node.body):
                if not ast.get_docstring(method) and method.name not in PROTOCOL_METHODS:
                    yield f"{node.name}.{method.name}"


PROTOCOL_METHODS = {
    method.name
    for tree in TREES.values()
    for node in ast.walk(tree)
    if isinstance(node, ast.ClassDef) and "Protocol" in {base.id for base in node.bases if isinstance(base, ast.Name)}
    for method in public(node.body)
    if ast.get_docstring(method)
}


def test_modules_have_fewer_than_400_lines() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {path: lines for path, lines in lengths.items() if lines >= 400} == {}


def test_functions_have_at_most_40_statements() -> None:
    counts = {
        f"{name}: {node.name}": sum(1 for _ in statements(node))
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, Function)
    }
    assert {name: count for name, count in counts.items() if count > 40} == {}


def test_modules_say_what_they_are_for() -> None:
    assert [name for name, tree in TREES.items() if tree.body and not ast.get_docstring(tree)] == []


def test_whatever_is_public_has_a_docstring() -> None:
    assert [f"{name}: {each}" for name, tree in TREES.items() for each in undocumented(tree)] == []


def test_an_unfinished_thing_names_the_event_that_ends_it() -> None:
    unfinished = re.compile(r"\b(?:TODO|FIXME|XXX)\b(?!\(when .+\))")
    assert [path for path in MODULES if unfinished.search(path.read_text(encoding="utf-8"))] == []


def test_no_place_on_somebodys_machine_is_written_down() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in [*MODULES, *PAGES, *ROOT.glob("examples/*.py")]}
    private = re.compile(r"(?<![\w.<}~])/(?:home|root|work|mnt|opt|Users)/")
    assert [path for path, text in texts.items() if private.search(text)] == []


def test_addresses_are_of_known_sites() -> None:
    texts = [path.read_text(encoding="utf-8") for path in [*MODULES, *PAGES]]
    assert {site for text in texts for site in re.findall(r"https?://([\w.-]+)", text)} <= KNOWN_SITES


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_has_tests_in_a_folder_of_its_name(package: str) -> None:
    assert list((ROOT / "tests" / package).rglob("test_*.py"))


def test_a_folder_of_tests_is_named_after_what_it_tests() -> None:
    known = {path.stem for path in SOURCE.iterdir()} | {"support", "examples"}
    found = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and not path.name.startswith(("_", "."))}
    assert found <= known


@pytest.mark.parametrize("folder", sorted(p.parent.name for p in SOURCE.glob("kernels/*/cpu.py")))
def test_an_operator_has_its_files(folder: str) -> None:
    found = {path.name for path in (SOURCE / "kernels" / folder).glob("*.py")}
    assert found >= ({"__init__.py", "cpu.py"} | (set() if folder in DRIVERS else {"reference.py"}))


@pytest.mark.parametrize("folder", sorted(p.parent.name for p in SOURCE.glob("models/*/model.py")))
def test_an_architecture_has_its_files(folder: str) -> None:
    found = {path.name for path in (SOURCE / "models" / folder).glob("*.py")}
    assert found >= {"__init__.py", "spec.py", "model.py"}


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    """Each line's depth names its parent: the last line before it that is less deep."""
    drawn: dict[str, str | None] = {}
    ancestors: list[str] = []
    for line in (residency.errors.__doc__ or "").splitlines():
        if match := re.match(r"^([│├└─ ]*)(\w+Error)\b", line):
            del ancestors[len(match[1]) // 4 :]
            drawn[match[2]] = ancestors[-1] if ancestors else None
            ancestors.append(match[2])
    classes = [c for c in vars(residency.errors).values() if isinstance(c, type) and issubclass(c, Exception)]
    parents = {c.__name__: c.__base__.__name__ if c.__base__ else None for c in classes}
    parents["ResidencyError"] = None
    assert drawn == parents


def test_every_error_for_users_is_a_residency_error() -> None:
    """Classes called ...Error outside errors.py would escape from the command line's one handler."""
    found = [
        f"{path}: {node.name}"
        for path, tree in TREES.items()
        if not path.endswith("/errors.py")
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name.endswith("Error")
    ]
    assert found == []


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    listed = [*project["dependencies"], *extras["serve"], *extras["gpu"]]
    declared = {re.split(r"[^\w-]", each)[0].replace("-", "_") for each in listed}
    declared |= {"llvmlite"}  # numba's own compiler: it asks for the one version that fits
    imported = {
        name.split(".")[0] for tree in TREES.values() for node in ast.walk(tree) for name in _imported_names(node)
    }
    assert imported - set(sys.stdlib_module_names) - {"residency"} <= declared


def _imported_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []


def test_a_run_loads_no_compiler_and_nothing_that_it_does_not_need() -> None:
    program = "import sys, residency.cli.run, residency.engine.engine; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert LATE.isdisjoint(loaded)


def test_every_link_between_pages_leads_somewhere() -> None:
    local = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")
    links = [(page, link) for page in PAGES for link in local.findall(page.read_text(encoding="utf-8"))]
    assert [(page, link) for page, link in links if not (page.parent / link).exists()] == []


def test_the_readme_begins_with_a_command_that_runs_and_one_that_tests() -> None:
    """The continuous check runs the first two commands that the README gives."""
    runs, tests, *_ = _readme_commands()
    assert re.fullmatch(r"pip install \. && residency run smollm2-135m .+", runs)
    assert re.fullmatch(r'pip install -e "\.\[test\]" && pytest', tests)


def test_the_readme_shows_the_command_that_it_asks_for() -> None:
    shown = re.search(r"^\$ (residency run .*)$", README, re.MULTILINE)
    assert shown and _readme_commands()[0].endswith(f"&& {shown[1]}")


def _readme_commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]
