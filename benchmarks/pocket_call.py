"""Train the pocket autoencoder, the reader, the teacher and the generators on one GPU within a fixed time.

There are three phases, each one call on the same machine. The first one fine-tunes the autoencoder; rendering and the
reader go on in the background after it ends. The second one trains the teacher in all of its time: a short probe
measures an update. The third one makes the tables, as far as its time reaches.
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
# Cells of the tables whose models are kept.
_KEPT = ("w2s-4-seed0", "one_step-1-seed0")

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
        table_clips: portraits for the trainings of the tables.
        vae: settings of the autoencoder's fine-tuning.
        reader: settings of the reader.
        teacher: settings of the teacher.
        tables: arguments of `magicdistill pocket tables`.
        probe_updates: updates of the probe.
        shipped: whether to keep the shipped autoencoder and reader, and to train the shipped teacher further.
    """

    work: Path
    results: Path
    end: float
    processes: int
    folders: int
    clips: int
    vae_clips: int
    table_clips: int
    vae: tuple[str, ...]
    reader: tuple[str, ...]
    teacher: tuple[str, ...]
    tables: tuple[str, ...]
    probe_updates: int
    shipped: bool = False

    @property
    def start(self) -> Path | None:
        """The teacher's start; None for random weights."""
        return TEACHER if self.shipped else None

    @property
    def vae_file(self) -> Path:
        """The fine-tuned autoencoder."""
        return self.work / VAE.name

    @property
    def reader_file(self) -> Path:
        """The reader of that autoencoder's frames."""
        return self.work / READER.name

    @property
    def teacher_file(self) -> Path:
        """The teacher."""
        return self.work / TEACHER.name

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

    def failed(self, name: str) -> Path:
        """Return a file that exists if a process in the background has failed: "portraits" or "reader"."""
        return self.work / f"{name}.failed"

    def wait_for(self, file: Path, name: str) -> None:
        """Wait for a file that a process in the background writes.

        Args:
            file: the file.
            name: name of the process.

        Raises:
            RuntimeError: if that process has failed.
        """
        while not file.exists():
            if self.failed(name).exists():
                raise RuntimeError(f"The {name} could not be made; see {self.work / f'{name}.log'}.")
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


def train_reader(call: Call) -> None:
    """Train the reader."""
    words = command("train-reader", "--vae", call.vae_file, "--run", call.work / "reader")
    # Moved when it is complete: other processes wait for this file.
    out = call.work / f"unfinished-{READER.name}"
    run(call, "train-reader", [*words, "--out", str(out), *call.reader], threads=2)
    out.replace(call.reader_file)


# What goes on in the background after the first phase.
_BACKGROUND = {"portraits": prepare_portraits, "reader": train_reader}


def _in_background(call: Call, name: str) -> None:
    start(call, name, [sys.executable, "-u", "-m", "benchmarks.pocket_call", *sys.argv[1:], f"--phase={name}"])


def first(call: Call) -> None:
    """Fine-tune the shipped autoencoder or keep it, while another process renders the teacher's portraits."""
    call.work.mkdir(parents=True, exist_ok=True)
    if call.shipped:
        shutil.copyfile(VAE, call.vae_file)
        shutil.copyfile(READER, call.reader_file)
        _in_background(call, "portraits")
        return
    data = call.work / "vae-portraits"
    words = command("render", "--out", data, "--processes", str(call.processes))
    run(call, "vae-portraits", [*words, f"clips={call.vae_clips}", f"first_seed={_VAE_SEED}"])
    _in_background(call, "portraits")
    out = call.work / "vae-training" / VAE.name
    words = command("train-vae", "--start", VAE, "--data", data, "--run", call.work / "vae-training/run", "--out", out)
    run(call, "vae", [*words, *(f"--tuning={setting}" for setting in call.vae)])
    # Moved when it is complete: the other process waits for this file.
    shutil.copyfile(out, call.work / "vae.tmp")
    (call.work / "vae.tmp").replace(call.vae_file)
    _in_background(call, "reader")
    keep(call, call.vae_file)


def second(call: Call) -> None:
    """Train the teacher in all the time that there is, and render what the tables need."""
    seconds = _probed(call)
    call.wait_for(call.done, "portraits")
    words = command("latents", "--out", call.work / "tables/portraits", "--clips", str(call.table_clips))
    words += ["--vae", str(call.vae_file)]
    preparing = start(call, "tables-portraits", [*words, "--processes", str(call.processes)])
    updates = max(1, int((call.left() - _START_SECONDS - _END_SECONDS) / seconds))
    logger.info("%.4f s per update, %d updates in %.0f s", seconds, updates, call.left())
    words = command("train-teacher", "--latents", call.latents, "--vae", call.vae_file, "--run", call.work / "teacher")
    words += ["--portraits", str(call.portraits(0)), "--clips", str(call.clips), "--out", str(call.teacher_file)]
    words += ["--start", str(call.start)] if call.start else []
    run(call, "teacher", [*words, f"updates={updates}", *call.teacher], seconds=call.left() - _END_SECONDS)
    keep(call, call.teacher_file)
    call.wait_for(call.reader_file, "reader")
    keep(call, call.reader_file)
    if preparing.wait():
        raise RuntimeError(f"The portraits of the tables could not be made; see {call.work / 'tables-portraits.log'}.")


def third(call: Call) -> None:
    """Make the tables as far as the time reaches, and keep the results and the first generators."""
    runs, results = call.work / "tables", call.work / "tables" / "pocket_tables.json"
    files = ("--teacher", call.teacher_file, "--vae", call.vae_file, "--reader", call.reader_file)
    words = command("tables", "--runs", runs, "--out", results, *files, "--portraits", str(call.table_clips))
    words += call.tables
    try:
        run(call, "tables", words, seconds=call.left() - _END_SECONDS)
    except subprocess.CalledProcessError:
        if not runs.exists():
            raise
        # What is made so far is kept, and the reason is in the log.
        logger.warning("Not all of the tables are made")
    for model in (runs / "models" / f"{cell}.safetensors" for cell in _KEPT):
        if model.exists():
            keep(call, model)
    names = [name for name in ("cells", "sheets", "logs", results.name) if (runs / name).exists()]
    subprocess.run(["tar", "czf", call.results / "tables.tar.gz", "-C", runs, *names], check=True)


def probe(call: Call) -> None:
    """Train the teacher for some updates, on the portraits that are encoded so far."""
    # Imported here: DeepSpeed takes seconds, and the other phases do not need it.
    from train.pocket.teacher import network_shape, teacher_config, train_teacher

    off = [f"updates={call.probe_updates}", "validation.every=0", "checkpoint.every=1000000"]
    config = teacher_config(
        call.work / "probe", call.latents, call.vae_file, call.start, network_shape(), [*call.teacher, *off]
    )
    train_teacher(config, call.work / "probe.safetensors")


def _probed(call: Call) -> float:
    """Return the seconds of an update of the teacher, measured in a short run."""
    call.wait_for(call.latents / INDEX_NAME, "portraits")
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
    kinds = {".log", ".jsonl", ".yaml"} if name == "third" else {".log", ".jsonl", ".yaml", ".png", ".html"}
    kept = [path for path in call.work.rglob("*") if path.suffix in kinds]
    listed = "\n".join(str(path.relative_to(call.work)) for path in kept if path.is_file())
    archive = call.results / f"{name}.tar.gz"
    call.results.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "czf", archive, "-T", "-"], input=listed.encode(), cwd=call.work, check=True)


def main() -> None:
    """Read the command line and run the phases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder of everything that is made")
    parser.add_argument("results", type=Path, help="folder for what shall be kept")
    parser.add_argument("--phase", choices=("first", "second", "third", *_BACKGROUND, "probe"), required=True)
    parser.add_argument("--minutes", type=float, default=9.0, help="time of this call")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="processes that render")
    parser.add_argument("--folders", type=int, default=4, help="folders of portraits for the teacher")
    parser.add_argument("--clips", type=int, default=12_000, help="portraits in each folder")
    parser.add_argument("--vae-clips", type=int, default=3_000, help="portraits for the autoencoder")
    parser.add_argument("--table-clips", type=int, default=2048, help="portraits for the trainings of the tables")
    parser.add_argument("--vae", action="append", default=[], metavar="KEY=VALUE", help="setting of the fine-tuning")
    parser.add_argument("--reader", action="append", default=[], metavar="KEY=VALUE", help="setting of the reader")
    parser.add_argument("--teacher", action="append", default=[], metavar="KEY=VALUE", help="setting of the teacher")
    parser.add_argument("--tables", action="append", default=[], metavar="ARGUMENT", help="argument of the tables")
    parser.add_argument("--probe-updates", type=int, default=_PROBE_UPDATES, help="updates of the probe")
    parser.add_argument("--shipped", action="store_true", help="keep autoencoder and reader, train the teacher further")
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
        table_clips=chosen.table_clips,
        vae=tuple(chosen.vae),
        reader=tuple(chosen.reader),
        teacher=tuple(chosen.teacher),
        tables=tuple(chosen.tables),
        probe_updates=chosen.probe_updates,
        shipped=chosen.shipped,
    )
    if chosen.phase in _BACKGROUND:
        try:
            _BACKGROUND[chosen.phase](call)
        except Exception:
            call.failed(chosen.phase).touch()
            raise
    elif chosen.phase == "probe":
        probe(call)
    else:
        try:
            {"first": first, "second": second, "third": third}[chosen.phase](call)
        finally:
            keep_logs(call, chosen.phase)


if __name__ == "__main__":
    main()
