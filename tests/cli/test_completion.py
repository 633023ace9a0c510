"""Shells complete verbs and models."""

import pytest

from support.command import Residency


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_its_script(residency: Residency, shell: str) -> None:
    assert f"_RESIDENCY_COMPLETE={shell}_complete" in residency("completion", shell).stdout


@pytest.mark.parametrize(
    ("words", "completed"), [("residency ru", "plain,run"), ("residency run smo", "plain,smollm2-135m")]
)
def test_words_are_completed(residency: Residency, monkeypatch: pytest.MonkeyPatch, words: str, completed: str) -> None:
    monkeypatch.setenv("_RESIDENCY_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    assert residency().stdout.strip() == completed
