"""A cache folder of a test's own, whose compiled kernels are those of the runs before."""

from pathlib import Path


def cache_with_kernels(folder: Path, kernels: Path) -> Path:
    """`folder`, made, with `kernels` as its folder of compiled kernels: stores are its own, kernels are shared."""
    folder.mkdir(parents=True, exist_ok=True)
    kernels.mkdir(parents=True, exist_ok=True)
    (folder / "kernels").symlink_to(kernels, target_is_directory=True)
    return folder
