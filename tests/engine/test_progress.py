"""Progress in a log file and on a terminal."""

import io
import sys
from types import SimpleNamespace

import pytest

from siglip2_dense.engine import progress as module
from siglip2_dense.engine.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_a_log_file_gets_whole_lines(clock, capsys):
    with Progress("extracting train", 300) as progress:
        for _ in range(50):
            clock.seconds += 1
            progress.update(4)
        progress.skip(100)
        assert (progress.done, progress.total) == (200, 200)
    out, err = capsys.readouterr()
    assert out == "" and err == (
        "extracting train: 120 of 300 images, 4 images/s, 00:45 left\n"
        "extracting train: 200 images in 00:50, 4 images/s\n"
    )


def test_a_pass_that_failed_or_did_nothing_has_no_speed(clock, capsys):
    with pytest.raises(KeyError), Progress("evaluating val", 3) as progress:
        progress.update(1)
        raise KeyError
    with Progress("extracting val", 0):
        pass
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_and_the_speed(clock, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("evaluating val", 3) as progress:
        clock.seconds += 40
        progress.update(3)
    text = terminal.getvalue()
    assert "evaluating val:   0%|" in text and text.endswith("evaluating val: 3 images in 00:40, 0.075 images/s\n")
    assert "left" not in text


def test_the_last_images_are_told_once(clock, capsys):
    with Progress("evaluating val", 3) as progress:
        clock.seconds += 40
        progress.update(3)
    assert capsys.readouterr().err == "evaluating val: 3 images in 00:40, 0.075 images/s\n"


def test_other_processes_are_silent_and_the_first_says_that_it_is_one(clock, monkeypatch, capsys):
    monkeypatch.setattr(module, "get_world_size", lambda: 8)
    for first in (False, True):
        monkeypatch.setattr(module, "is_main_process", lambda first=first: first)
        with Progress("evaluating val", 3) as progress:
            clock.seconds += 1
            progress.update(3)
    assert capsys.readouterr().err == "evaluating val, the first of 8 processes: 3 images in 00:01, 3 images/s\n"
