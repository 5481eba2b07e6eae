"""`magicdistill pocket`: the default output files of its commands."""

import inspect
from pathlib import Path

import typer

from magicdistill_core.pocket.files import READER, TEACHER, VAE
from train.pocket.cli import app, train_teacher_command


def test_nothing_is_written_over_the_shipped_weights() -> None:
    written = {
        (name, option.name): Path(option.default)
        for name, command in typer.main.get_command(app).commands.items()
        for option in command.params
        if option.name in ("out", "run", "runs", "latents") and option.default is not None
    }
    assert {("train-vae", "out"), ("train-teacher", "out"), ("train-teacher", "run")} <= set(written)
    assert {("train-reader", "out"), ("train-reader", "run")} <= set(written)
    shipped = VAE.parents[1]
    assert TEACHER.is_relative_to(shipped)
    assert not [place for place, path in written.items() if path.resolve().is_relative_to(shipped)]
    # The names are those of the shipped files, so that a copy replaces them.
    assert written["train-vae", "out"].name == VAE.name
    assert written["train-teacher", "out"].name == TEACHER.name
    assert written["train-reader", "out"].name == READER.name


def test_the_command_makes_the_teacher_of_the_usual_size() -> None:
    from train.pocket.teacher import network_shape

    defaults = inspect.signature(train_teacher_command).parameters
    sizes = {name: defaults[name].default for name in ("heads", "double_blocks", "single_blocks")}
    assert network_shape(**sizes) == network_shape()
