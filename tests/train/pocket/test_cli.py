"""`magicdistill pocket`: what its commands write when they are not told where."""

from pathlib import Path

import typer

from magicdistill_core.pocket.files import TEACHER, VAE
from train.pocket.cli import app


def test_nothing_is_written_over_the_shipped_weights() -> None:
    written = {
        (name, option.name): Path(option.default)
        for name, command in typer.main.get_command(app).commands.items()
        for option in command.params
        if option.name in ("out", "run", "runs", "latents") and option.default is not None
    }
    assert {("train-vae", "out"), ("train-teacher", "out"), ("train-teacher", "run")} <= set(written)
    shipped = VAE.parents[1]
    assert TEACHER.is_relative_to(shipped)
    assert not [place for place, path in written.items() if path.resolve().is_relative_to(shipped)]
    # Under the names that the shipped ones have, so that they can be put in their place.
    assert written["train-vae", "out"].name == VAE.name
    assert written["train-teacher", "out"].name == TEACHER.name
