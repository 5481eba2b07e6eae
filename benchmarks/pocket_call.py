"""Train the pocket autoencoder, the reader and the teacher on one GPU within a fixed time.

`python -m benchmarks.pocket_call WORK RESULTS --minutes 9` runs everything. Where one call may take only some minutes,
run `--phase first` and then `--phase second` on the same machine: the first call fine-tunes the autoencoder and goes on
rendering in the background after it ends. The teacher gets all the time that is left: a short probe measures an update.
"""

import argparse
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from magicdistill_core.pocket.files import READER, TEACHER, VAE
from train.data.dataset_index import INDEX_NAME
from train.run_folder import METRICS_FILE

ROOT = Path(__file__).resolve().parents[1]

# Portraits for the autoencoder; no other training has these seeds.
_VAE_SEED = 4_000_000
_PROBE_UPDATES = 90
_PROBE_MEASURED = 40
# Start of the training process, its last checkpoint, and the export.
_START_SECONDS, _END_SECONDS = 25.0, 20.0
# A file that comes back from a machine may have a limited size.
_PART_BYTES = 15 * 1024**2

logger = logging.getLogger("pocket_call")


@dataclass(frozen=True)
class Call:
    """The settings of a call.

    Attributes:
        work: folder of everything that is made; it must outlive the first phase.
        results: folder for what shall be kept.
        end: time of `time.monotonic` at which the call has to be over.
        processes: processes that render.
        folders: number of folders of portraits for the teacher. Each is encoded while the next one is rendered.
        clips: portraits in each of these folders.
        vae_clips: portraits for the autoencoder.
        vae: settings of its fine-tuning.
        reader: settings of the reader.
        teacher: settings of the teacher.
        probe_updates: updates of the probe.
    """

    work: Path
    results: Path
    end: float
    processes: int
    folders: int
    clips: int
    vae_clips: int
    vae: tuple[str, ...]
    reader: tuple[str, ...]
    teacher: tuple[str, ...]
    probe_updates: int

    @property
    def vae_file(self) -> Path:
        """The fine-tuned autoencoder."""
        return self.work / VAE.name

    @property
    def latents(self) -> Path:
        """The dataset of the teacher."""
        return self.work / "latents"

    def portraits(self, number: int) -> Path:
        """Return a folder of portraits for the teacher."""
        return self.work / f"portraits-{number}"

    @property
    def done(self) -> Path:
        """A file that exists once all portraits are encoded."""
        return self.work / "portraits.done"

    @property
    def failed(self) -> Path:
        """A file that exists if the portraits could not be made."""
        return self.work / "portraits.failed"

    def wait_for(self, file: Path) -> None:
        """Wait for a file that the process of the portraits writes.

        Raises:
            RuntimeError: if that process has failed.
        """
        while not file.exists():
            if self.failed.exists():
                raise RuntimeError(f"The portraits could not be made; see {self.work / 'portraits.log'}.")
            time.sleep(0.5)

    def left(self) -> float:
        """Return the seconds until the end."""
        return self.end - time.monotonic()


def command(*words: str | Path) -> list[str]:
    """Return a command of `magicdistill pocket` for a process of its own."""
    return [sys.executable, "-u", "-m", "train", "pocket", *map(str, words)]


def start(call: Call, name: str, words: Sequence[str], threads: int = 1) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, which survives this process, with a log in the work folder.

    Args:
        call: the settings.
        name: name of the log.
        words: the command.
        threads: threads of PyTorch on the CPU.
    """
    log = open(call.work / f"{name}.log", "ab")  # noqa: SIM115 - the process keeps it open
    return subprocess.Popen(
        list(words),
        cwd=ROOT,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )


def run(call: Call, name: str, words: Sequence[str], threads: int = 4, seconds: float | None = None) -> None:
    """Run a command to its end, and log its time.

    Args:
        call: the settings.
        name: name of the log.
        words: the command.
        threads: threads of PyTorch on the CPU.
        seconds: after this time the command is asked to stop; a training then saves what it has and exports it.

    Raises:
        CalledProcessError: if the command failed; the end of its log is shown.
    """
    began = time.monotonic()
    process = start(call, name, words, threads)
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        logger.warning("%s is asked to stop after %.0f s", name, time.monotonic() - began)
        process.terminate()
        status = process.wait()
    logger.info("%s: %.0f s, status %d, %.0f s left", name, time.monotonic() - began, status, call.left())
    if status:
        log = (call.work / f"{name}.log").read_text(errors="replace")
        logger.error("%s", log[-3000:])
        raise subprocess.CalledProcessError(status, list(words))


def prepare_portraits(call: Call) -> None:
    """Render all folders of the teacher's portraits. Encode each as soon as there is an autoencoder."""
    encoded = 0
    for number in range(call.folders):
        seeds = f"first_seed={number * call.clips}"
        words = command("render", "--out", call.portraits(number), "--processes", str(call.processes))
        run(call, "render", [*words, f"clips={call.clips}", seeds])
        while encoded <= number and call.vae_file.exists():
            _encode(call, encoded)
            encoded += 1
    while encoded < call.folders:
        if call.vae_file.exists():
            _encode(call, encoded)
            encoded += 1
        else:
            time.sleep(1)
    call.done.touch()


def _encode(call: Call, number: int) -> None:
    folder, vae = call.portraits(number), call.vae_file
    words = command("latents", "--out", call.latents, "--portraits", folder, "--vae", vae, "--clips", str(call.clips))
    run(call, "encode", words)


def first(call: Call) -> None:
    """Fine-tune the shipped autoencoder, while another process renders the teacher's portraits."""
    call.work.mkdir(parents=True, exist_ok=True)
    data = call.work / "vae-portraits"
    words = command("render", "--out", data, "--processes", str(call.processes))
    run(call, "vae-portraits", [*words, f"clips={call.vae_clips}", f"first_seed={_VAE_SEED}"])
    start(call, "portraits", [sys.executable, "-u", "-m", "benchmarks.pocket_call", *sys.argv[1:], "--phase=portraits"])
    out = call.work / "vae-training" / VAE.name
    words = command("train-vae", "--start", VAE, "--data", data, "--run", call.work / "vae-training/run", "--out", out)
    run(call, "vae", [*words, *(f"--tuning={setting}" for setting in call.vae)])
    # Moved when it is complete: the other process waits for this file.
    shutil.copyfile(out, call.work / "vae.tmp")
    (call.work / "vae.tmp").replace(call.vae_file)
    keep(call, call.vae_file)


def second(call: Call) -> None:
    """Train the reader and, next to it, the teacher in all the time that is left."""
    reader = call.work / READER.name
    words = command("train-reader", "--vae", call.vae_file, "--run", call.work / "reader", "--out", reader)
    reading = start(call, "reader", [*words, *call.reader], threads=2)
    seconds = _probed(call)
    call.wait_for(call.done)
    updates = max(1, int((call.left() - _START_SECONDS - _END_SECONDS) / seconds))
    logger.info("%.4f s per update, %d updates in %.0f s", seconds, updates, call.left())
    words = command("train-teacher", "--latents", call.latents, "--vae", call.vae_file, "--run", call.work / "teacher")
    words += ["--portraits", str(call.portraits(0)), "--clips", str(call.clips), "--out", str(call.work / TEACHER.name)]
    run(call, "teacher", [*words, f"updates={updates}", *call.teacher], seconds=call.left() - _END_SECONDS)
    keep(call, call.work / TEACHER.name)
    try:
        status = reading.wait(max(1.0, call.left()))
    except subprocess.TimeoutExpired:
        reading.terminate()
        logger.warning("There was no time to finish the reader. Train it with `magicdistill pocket train-reader`")
        return
    if status:
        raise RuntimeError(f"The reader could not be trained; see {call.work / 'reader.log'}.")
    keep(call, reader)


def probe(call: Call) -> None:
    """Train the teacher for some updates, on the portraits that are encoded so far."""
    # Imported here: DeepSpeed takes seconds, and the other phases do not need it.
    from train.pocket.teacher import network_shape, teacher_config, train_teacher

    off = [f"updates={call.probe_updates}", "validation.every=0", "checkpoint.every=1000000"]
    config = teacher_config(
        call.work / "probe", call.latents, call.vae_file, None, network_shape(), [*call.teacher, *off]
    )
    train_teacher(config, call.work / "probe.safetensors")


def _probed(call: Call) -> float:
    """Return the seconds of an update of the teacher, measured in a short run."""
    call.wait_for(call.latents / INDEX_NAME)
    # The dataset of an earlier probe had other samples, so it cannot be continued.
    shutil.rmtree(call.work / "probe", ignore_errors=True)
    run(call, "probe", [sys.executable, "-u", "-m", "benchmarks.pocket_call", *sys.argv[1:], "--phase=probe"])
    lines = [json.loads(line) for line in (call.work / "probe" / METRICS_FILE).read_text().splitlines()]
    # Rendering and encoding, which go on during the probe, slow down many of its updates.
    return statistics.quantiles([line["seconds"] for line in lines[-_PROBE_MEASURED:]], n=4)[0]


def keep(call: Call, file: Path) -> None:
    """Copy a file to the results, in parts if it is large: `cat NAME.* > NAME` joins them."""
    content = file.read_bytes()
    call.results.mkdir(parents=True, exist_ok=True)
    parts = [content[begin : begin + _PART_BYTES] for begin in range(0, len(content), _PART_BYTES)]
    for number, part in enumerate(parts):
        name = file.name if len(parts) == 1 else f"{file.name}.{number}"
        (call.results / name).write_bytes(part)


def keep_logs(call: Call, name: str) -> None:
    """Pack the logs, curves and metrics into one archive in the results."""
    kept = [path for path in call.work.rglob("*") if path.suffix in (".log", ".jsonl", ".png", ".html", ".yaml")]
    listed = "\n".join(str(path.relative_to(call.work)) for path in kept if path.is_file())
    archive = call.results / f"{name}.tar.gz"
    call.results.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "czf", archive, "-T", "-"], input=listed.encode(), cwd=call.work, check=True)


def main() -> None:
    """Read the command line and run the phases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder of everything that is made")
    parser.add_argument("results", type=Path, help="folder for what shall be kept")
    parser.add_argument("--phase", choices=("all", "first", "second", "portraits", "probe"), default="all")
    parser.add_argument("--minutes", type=float, default=9.0, help="time of this call; the teacher uses what is left")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="processes that render")
    parser.add_argument("--folders", type=int, default=4, help="folders of portraits for the teacher")
    parser.add_argument("--clips", type=int, default=12_000, help="portraits in each folder")
    parser.add_argument("--vae-clips", type=int, default=3_000, help="portraits for the autoencoder")
    parser.add_argument("--vae", action="append", default=[], metavar="KEY=VALUE", help="setting of the fine-tuning")
    parser.add_argument("--reader", action="append", default=[], metavar="KEY=VALUE", help="setting of the reader")
    parser.add_argument("--teacher", action="append", default=[], metavar="KEY=VALUE", help="setting of the teacher")
    parser.add_argument("--probe-updates", type=int, default=_PROBE_UPDATES, help="updates of the probe")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    call = Call(
        work=chosen.work.resolve(),
        results=chosen.results.resolve(),
        end=time.monotonic() + 60 * chosen.minutes,
        processes=chosen.processes,
        folders=chosen.folders,
        clips=chosen.clips,
        vae_clips=chosen.vae_clips,
        vae=tuple(chosen.vae),
        reader=tuple(chosen.reader),
        teacher=tuple(chosen.teacher),
        probe_updates=chosen.probe_updates,
    )
    if chosen.phase == "portraits":
        try:
            prepare_portraits(call)
        except Exception:
            call.failed.touch()
            raise
    if chosen.phase == "probe":
        probe(call)
    for phase, work in (("first", first), ("second", second)):
        if chosen.phase in (phase, "all"):
            try:
                work(call)
            finally:
                keep_logs(call, phase)


if __name__ == "__main__":
    main()
