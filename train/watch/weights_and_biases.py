"""The metrics of a run at Weights & Biases (W&B), if the configuration names a project.

W&B adds rows to a run and never removes one. When rounds no longer count, after a rollback or a crash, a new W&B run
therefore begins with the rounds that still count.
"""

import os
import secrets
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import WandBTracker

from magicdistill_core.errors import ConfigError
from magicdistill_core.files import write_text

from ..config.training import TrainConfig

_ID_FILE = "wandb_id"
# The values of WANDB_MODE that need no login.
_WITHOUT_LOGIN = ("offline", "disabled", "dryrun")
_PROMPT_SECONDS = 60


def check_wandb(config: TrainConfig) -> None:
    """Check before loading that W&B is installed and logged in, if it is configured.

    In a terminal, W&B asks for the key. Only the main process calls this.

    Args:
        config: the training's configuration.

    Raises:
        ConfigError: if W&B is not installed, there is no login, or the server refuses it.
    """
    project = config.logging.wandb
    if project is None:
        return
    if find_spec("wandb") is None:
        raise ConfigError(
            f"logging.wandb is {project!r}, but Weights & Biases is not installed. Install it with "
            "`pip install wandb` and log in with `wandb login`. Or remove logging.wandb; TensorBoard needs neither."
        )
    if os.environ.get("WANDB_MODE") in _WITHOUT_LOGIN:
        return
    import wandb

    try:
        problem = None if wandb.login(timeout=_PROMPT_SECONDS, verify=True) else "there is no key"
    except Exception as error:
        problem = str(error)
    if problem is not None:
        raise ConfigError(
            f"logging.wandb is {project!r}, but this machine is not logged in to Weights & Biases ({problem}). Log in "
            "with `wandb login`, or set WANDB_API_KEY; or set WANDB_MODE=offline to send the metrics later with `wandb "
            "sync`; or remove logging.wandb."
        )


class WandbLog:
    """The W&B run that shows the rounds of a training."""

    def __init__(self, folder: Path, project: str, settings: Mapping[str, Any]) -> None:
        """Prepare the log; `start` or `restart` opens it.

        Args:
            folder: the run's folder.
            project: the W&B project.
            settings: the configuration, as JSON data.
        """
        self._folder, self._project, self._settings = folder, project, settings
        self._tracker: WandBTracker | None = None

    def start(self) -> None:
        """Open the W&B run of this training; after a resume the same one."""
        if not self._id_file.exists():
            self._new_id()
        self._open(self._folder.name)

    def restart(self, rows: Iterable[Mapping[str, Any]], update: int) -> None:
        """Open a new W&B run, and log the rounds that still count.

        Args:
            rows: the lines of `metrics.jsonl`.
            update: the last update that counts.
        """
        self.finish()
        self._new_id()
        self._open(f"{self._folder.name} from update {update}")
        for row in rows:
            self.log({name: value for name, value in row.items() if name != "step"}, row["step"])

    def log(self, row: Mapping[str, Any], update: int) -> None:
        """Log the metrics of a round.

        Args:
            row: values by name.
            update: number of the generator update.
        """
        assert self._tracker is not None
        # W&B counts the rows by itself. Its curves are drawn over this metric.
        self._tracker.log({**row, "update": update})

    def finish(self) -> None:
        """Send what is left and close the W&B run, if one is open."""
        if self._tracker is not None:
            self._tracker.finish()
            self._tracker = None

    @property
    def _id_file(self) -> Path:
        return self._folder / _ID_FILE

    def _new_id(self) -> None:
        write_text(self._id_file, secrets.token_hex(4))

    def _open(self, name: str) -> None:
        self._tracker = WandBTracker(
            self._project,
            id=self._id_file.read_text(encoding="utf-8").strip(),
            name=name,
            group=self._folder.name,
            dir=str(self._folder),
            resume="allow",
            config=dict(self._settings),
        )
        self._tracker.start()
        self._tracker.run.define_metric("*", step_metric="update")


def wandb_log(config: TrainConfig) -> WandbLog | None:
    """Return the W&B log of a run; None if no project is configured.

    Args:
        config: the training's configuration.
    """
    project = config.logging.wandb
    return None if project is None else WandbLog(config.run, project, config.model_dump(mode="json"))
