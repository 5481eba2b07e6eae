"""Sample the generator with fixed seeds during training, and write a video and a contact sheet."""

import logging
from pathlib import Path

import torch
from torch import Tensor

from magicdistill_core.errors import ConfigError
from magicdistill_core.families.base import Family
from magicdistill_core.flow import few_step_sigmas
from magicdistill_core.geometry import unit_to_frames
from magicdistill_core.hashes import weights_sha256
from magicdistill_core.media.video import contact_sheet
from magicdistill_core.media.video_writing import write_video
from magicdistill_core.pocket.files import VAE

from ..config.sections import SEEDS
from ..config.training import ScheduleConfig, ValidationConfig
from ..data.dataset import LatentDataset
from ..data.vae import load_vae
from ..distributed import is_main
from ..engines.networks import Networks
from ..networks.sampling import sample_latents

logger = logging.getLogger(__name__)


class Validation:
    """Validation samples for start images spread over the dataset, with the sampler of the exported file."""

    def __init__(
        self,
        settings: ValidationConfig,
        schedule: ScheduleConfig,
        dataset: LatentDataset,
        family: Family,
        folder: Path,
        device: torch.device,
    ) -> None:
        """Choose the start images, and load the VAE on the main process if samples are generated.

        Args:
            settings: the configuration's section `validation`.
            schedule: steps, shift and sampler.
            dataset: the dataset that contains the start images.
            family: the teacher's family.
            folder: folder for the videos and contact sheets.
            device: device of the generator and the VAE.

        Raises:
            MagicDistillError: if the VAE is unusable, or its latents do not belong to the family's architecture.
        """
        self.settings = settings
        self.schedule = schedule
        self.family = family
        self.folder = folder
        self.device = device
        self.fps = dataset.fps
        # Neighbouring samples of a dataset are windows of the same clip.
        count = min(settings.samples, len(dataset))
        chosen = [number * len(dataset) // count for number in range(count)]
        self.images = dataset.start_image(chosen).to(device)
        self.shape = (1, *dataset.latent_shape)
        vae = VAE if settings.vae == "pocket" else settings.vae
        self.vae = load_vae(vae, device) if settings.every and is_main() else None
        if self.vae is not None and self.vae.architecture != family.architecture.name:
            raise ConfigError(
                f"validation.vae ({vae}) decodes latents of {self.vae.architecture}, but the teacher is of "
                f"{family.architecture.name}. Set validation.vae to the VAE that encoded {dataset.folder}, or set "
                f"validation.every=0."
            )
        if self.vae is not None and weights_sha256(vae) != dataset.index.vae_sha256:
            logger.warning(
                "validation.vae (%s) is not the VAE that %s was encoded with. The samples will look broken unless both "
                "VAEs share one latent space",
                vae,
                dataset.folder,
            )

    def due(self, update: int) -> bool:
        """Return whether validation samples are due after generator update `update`."""
        return self.settings.every > 0 and update % self.settings.every == 0

    @torch.no_grad()
    def run(self, networks: Networks, update: int) -> str | None:
        """Sample on every process, and write `step-N.mp4` and `step-N.png` on the main process, where N is the update.

        Every process must sample because ZeRO-3 partitions the weights over all processes.

        Args:
            networks: the networks of the training.
            update: number of generator updates made.

        Returns:
            An error message if the samples could not be decoded or written, else None. Training does not depend on
            these files, so the run continues.
        """
        sigmas = few_step_sigmas(self.schedule.steps, self.schedule.shift)
        latents = []
        for number in range(len(self.images)):
            image = self.images[number : number + 1]
            velocity = networks.generator_velocity(self.family.condition(image, self.shape[2]))
            seed, kept = (self.settings.seed + number) % SEEDS, self.family.kept_frames
            sampler = self.schedule.sampler
            free = sample_latents(velocity, self.shape, sigmas, sampler, seed, self.device, kept_frames=kept)
            latents.append(self.family.whole(free, image))
        if self.vae is None:
            return None
        try:
            self._write([unit_to_frames(self.vae.decode(latent).cpu()) for latent in latents], update)
        except Exception as error:
            # Only this part may fail alone: all processes sample together, and would wait for one that failed.
            logger.warning("Update %d: the samples could not be shown. The run continues", update, exc_info=True)
            return f"the samples could not be shown: {error}"
        return None

    def _write(self, clips: list[Tensor], update: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        labels = [f"seed {(self.settings.seed + number) % SEEDS}" for number in range(len(clips))]
        contact_sheet(clips, labels, columns=8).save(self.folder / f"step-{update:06d}.png")
        write_video(self.folder / f"step-{update:06d}.mp4", torch.cat(clips, dim=2), self.fps)
