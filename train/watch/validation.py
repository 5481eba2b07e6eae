"""Validation: sample the generator for held-out clips with fixed noise, measure the samples and show some of them.

The measure is the energy score of the samples against what really followed each start image. It is computed on latents,
so it needs no VAE.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from magicdistill_core.errors import ConfigError
from magicdistill_core.families.base import Family
from magicdistill_core.flow import few_step_sigmas
from magicdistill_core.geometry import unit_to_frames
from magicdistill_core.hashes import weights_sha256
from magicdistill_core.media.contact_sheet import contact_sheet
from magicdistill_core.metrics.energy_score import energy_scores
from magicdistill_core.pocket.files import VAE

from ..config.sections import SEEDS
from ..config.training import ScheduleConfig, ValidationConfig
from ..data.dataset import LatentDataset
from ..data.vae import Vae, load_vae
from ..distributed import data_rank, data_size, from_all, is_main
from ..engines.networks import Networks
from ..methods.batch_prompts import BatchPrompts
from ..networks.prompts import Captioned, Conditioning
from ..networks.sampling import sample_latents
from .best import EnergyRecord

logger = logging.getLogger(__name__)


class Validation:
    """Samples of several seeds for some clips of the dataset and their captions, with the exported file's sampler."""

    def __init__(
        self,
        settings: ValidationConfig,
        schedule: ScheduleConfig,
        dataset: LatentDataset,
        held_out: Sequence[int],
        family: Family,
        folder: Path,
        device: torch.device,
        batch: int,
        prompts: BatchPrompts | None = None,
        context: int = 1,
    ) -> None:
        """Choose the clips, read those of this process, and load the VAE on the main process.

        Args:
            settings: the configuration's section `validation`.
            schedule: steps, shift and sampler.
            dataset: the dataset that contains the clips.
            held_out: numbers of the samples that the training does not see. Without any, the clips are spread over the
                complete dataset.
            family: the teacher's family.
            folder: folder for the videos and contact sheets.
            device: device of the generator and the VAE.
            batch: number of samples in one network call.
            prompts: the captions of the dataset's samples; None samples with the null prompt.
            context: number of processes that share one sample.

        Raises:
            MagicDistillError: if the VAE is unusable, its latents do not belong to the family's architecture, or a clip
                cannot be read.
        """
        self.settings = settings
        self.schedule = schedule
        self.family = family
        self.folder = folder
        self.device = device
        self.fps = dataset.fps
        self._batch = batch
        self._prompts = prompts
        self._shape = dataset.latent_shape
        candidates = held_out or range(len(dataset))
        self._count = min(settings.samples, len(candidates))
        # Neighbouring samples of a dataset are windows of the same video.
        self.clips = [candidates[number * len(candidates) // self._count] for number in range(self._count)]
        clips = [dataset.index.place(clip).key for clip in self.clips]
        facts: list[object] = [clips, settings.seeds, settings.seed, schedule.model_dump(mode="json")]
        if prompts is not None:
            facts.append("captions")
        # Only energies of the same clips, prompts, noise and schedule can be compared.
        self.key = hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()
        self._own = self._share(data_rank(context), data_size(context))
        self.vae: Vae | None = None
        if not settings.every:
            return
        if not held_out:
            logger.info("No clips are held out for validation (data.held_out): it uses clips of the training")
        chosen = [self.clips[number] for number in self._own]
        self._images, self._truths = dataset.start_image(chosen), dataset.latents(chosen)
        if is_main():
            self.vae = self._load_vae(dataset)

    def _share(self, number: int, shares: int) -> list[int]:
        """Return the places in `clips` of one of several shares, all of which are equally long.

        With ZeRO-3 all processes must make the same number of calls, so clips are repeated where there are too few.
        """
        own = list(range(number, self._count, shares))
        return own + [0] * (-(-self._count // shares) - len(own))

    def _load_vae(self, dataset: LatentDataset) -> Vae:
        file = VAE if self.settings.vae == "pocket" else self.settings.vae
        vae = load_vae(file, self.device)
        if vae.architecture != self.family.architecture.name:
            raise ConfigError(
                f"validation.vae ({file}) decodes latents of {vae.architecture}, but the teacher is of "
                f"{self.family.architecture.name}. Set validation.vae to the VAE that encoded {dataset.folder}, or set "
                f"validation.every=0."
            )
        if weights_sha256(file) != dataset.index.vae_sha256:
            logger.warning(
                "validation.vae (%s) is not the VAE that %s was encoded with. The samples will look broken unless both "
                "VAEs share one latent space",
                file,
                dataset.folder,
            )
        return vae

    def due(self, update: int, updates: int, made: EnergyRecord) -> bool:
        """Return whether a validation is due: at the run's start, every `every` updates, and at the end.

        Args:
            update: number of generator updates made.
            updates: number of generator updates of the complete run.
            made: the validations that were made.
        """
        every = self.settings.every
        if every == 0 or made.last == update:
            return False
        return made.since is None or update % every == 0 or update == updates

    @torch.no_grad()
    def run(self, networks: Networks) -> tuple[list[float], list[Tensor]]:
        """Sample the validation's clips; a collective call, in which each process samples its share.

        Args:
            networks: the networks of the training.

        Returns:
            The energy score of each clip, and the latents `[1, 16, T, H, W]` of the clips to show on the CPU; both
            are the same on every process.
        """
        seeds = self.settings.seeds
        places = [(own, seed) for own in range(len(self._own)) for seed in range(seeds)]
        made = []
        for first in range(0, len(places), self._batch):
            part = places[first : first + self._batch]
            made.append(self._sample(networks, part).float().cpu())
        samples = torch.cat(made).unflatten(0, (len(self._own), seeds))
        energies = energy_scores(samples, self.family.free(self._truths)).tolist()
        shown = {}
        for own, clip in enumerate(self._own):
            if clip < self.settings.shown:
                shown[clip] = self.family.whole(samples[own, :1], self._images[own : own + 1])
        results = from_all((dict(zip(self._own, energies, strict=True)), shown))
        # A clip that was repeated to fill a share counts as sampled by the process that it belongs to.
        all_energies: dict[int, float] = {}
        all_shown: dict[int, Tensor] = {}
        for found, latents in reversed(results):
            all_energies |= found
            all_shown |= latents
        count = range(self._count)
        return [all_energies[clip] for clip in count], [all_shown[clip] for clip in count[: self.settings.shown]]

    def _sample(self, networks: Networks, places: list[tuple[int, int]]) -> Tensor:
        """Sample the generated frames for pairs of a place in this process's share and the number of a sample."""
        images = self._images.map(lambda tensor: tensor[[own for own, _ in places]]).to(self.device)
        start = self.family.condition(images, self._shape[1])
        condition: Conditioning = start
        if self._prompts is not None:
            prompts = self._prompts.captions([self.clips[self._own[own]] for own, _ in places])
            condition = Captioned(start, prompts.to(self.device))
        return sample_latents(
            networks.generator_velocity(condition),
            (len(places), *self._shape),
            few_step_sigmas(self.schedule.steps, self.schedule.shift),
            self.schedule.sampler,
            [self._noise_seed(self._own[own], number) for own, number in places],
            self.device,
            kept_frames=self.family.kept_frames,
            image=images.latents,
            image_in_noise=self.schedule.image_in_noise,
        )

    def _noise_seed(self, clip: int, number: int) -> int:
        return (self.settings.seed + clip + number * self._count) % SEEDS

    def show(self, latents: Sequence[Tensor], update: int) -> str | None:
        """Write `step-N.mp4` and `step-N.png` on the main process, where N is the update.

        Args:
            latents: the latents to show, from `run`.
            update: number of generator updates made.

        Returns:
            An error message if the samples could not be decoded or written, else None. Training does not depend on
            these files, so the run continues.
        """
        if self.vae is None:
            return None
        try:
            first = self.schedule.dropped_frames
            # Imported here: without PyAV a machine trains and measures all the same.
            from magicdistill_core.media.video_writing import write_video

            with torch.no_grad():
                clips = [unit_to_frames(self.vae.decode(latent.to(self.device))[:, first:].cpu()) for latent in latents]
            self.folder.mkdir(parents=True, exist_ok=True)
            labels = [f"seed {self._noise_seed(number, 0)}" for number in range(len(clips))]
            contact_sheet(clips, labels, columns=8).save(self.folder / f"step-{update:06d}.png")
            write_video(self.folder / f"step-{update:06d}.mp4", torch.cat(clips, dim=2), self.fps)
        except Exception as error:
            # Only this part may fail alone: all processes sample together, and would wait for one that failed.
            logger.warning("Update %d: the samples could not be shown. The run continues", update, exc_info=True)
            return f"the samples could not be shown: {error}"
        return None
