"""A trainer that trains nothing, for tests of what happens around trainings."""

import json
from pathlib import Path

from magicdistill_core.checkpoint import load_checkpoint, save_checkpoint
from magicdistill_core.errors import MagicDistillError
from magicdistill_core.recipe import Recipe
from train.run_folder import BEST, EVENTS_FILE, FOLDER, LATEST, MANIFEST, METRICS_FILE, RUN_FILE, Manifest


def settings_of(arguments: list[str]) -> dict[str, str]:
    """The settings `key=value` among the arguments of a command."""
    return dict(text.split("=", 1) for text in arguments if "=" in text)


class FakeTrainer:
    """Writes the files of a run without training: the generator of update n is the teacher. Update 3 is the best."""

    def __init__(self, teacher: Path, ends_at: int | None = None) -> None:
        self.teacher, self.ends_at = teacher, ends_at
        self.commands: list[list[str]] = []

    def __call__(self, arguments: list[str], log: Path) -> None:
        self.commands.append(arguments)
        settings = settings_of(arguments)
        run, updates = Path(settings["run"]), int(settings["updates"])
        assert ("--resume" in arguments) == (run / FOLDER).exists()
        teacher = load_checkpoint(self.teacher)
        assert teacher.recipe is not None
        recipe = Recipe.model_validate(teacher.recipe.model_dump() | {"kind": "generator", "steps": 4})
        last = updates if self.ends_at is None else min(updates, self.ends_at - 1)
        for update in sorted({min(3, last), last}):
            folder = run / FOLDER / f"step-{update:06d}"
            save_checkpoint(folder / "generator.safetensors", teacher.state, recipe, teacher.null_prompt)
            (folder / MANIFEST).write_text(Manifest(update, {}, {}, 1.0, True, {}).to_json())
        (run / RUN_FILE).write_text(json.dumps({"teacher": str(self.teacher), "mode": "full"}))
        (run / FOLDER / LATEST).write_text(f"step-{last:06d}")
        (run / FOLDER / BEST).write_text(f"step-{min(3, last):06d}")
        rows = [{"step": number + 1, "seconds": 0.5} for number in range(last)]
        (run / METRICS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
        events = [{"event": "warning", "step": 2, "finding": "the samples stop moving"}]
        if last < updates:
            events.append({"event": "ended by the guard", "step": last + 1, "findings": ["the loss is nan"]})
        else:
            events.append({"event": "finished", "step": last})
        (run / EVENTS_FILE).write_text("".join(json.dumps(event) + "\n" for event in events))
        if last < updates:
            raise MagicDistillError("the guard ended the run")
