"""A stand-in for packs that load GGUF files, with the behaviour of ComfyUI-GGUF that other nodes can see.

- A weight is a subclass of Tensor: packed bytes that report the shape of the unpacked weight. `detach` and `clone`
  return the same object.
- A layer unpacks its weight at every call. Its state dict exists only for the estimate of memory: empty tensors on the
  device `meta` with the size of the bytes. The layer with the largest weight adds `temp.weight`, which no module has.
- The MODEL's patcher does not change packed weights. It stores the patches with the weight, and the layer applies them.

The packed bytes are those of GGUF's `Q8_0`: for 32 numbers a scale in fp16 and 32 int8.
"""

import comfy.lora
import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

_BLOCK = 32


class Packed(Tensor):
    """Packed bytes of a weight; `unpacked` is the weight's shape, `patches` are changes that its layer adds."""

    unpacked: torch.Size
    largest: bool
    patches: list

    @property
    def shape(self) -> torch.Size:
        return getattr(self, "unpacked", self.size())

    def detach(self) -> "Packed":
        return self

    def clone(self, **_: object) -> "Packed":
        return self

    def to(self, *args: object, **kwargs: object) -> "Packed":
        new = super().to(*args, **kwargs)
        new.unpacked, new.largest, new.patches = self.unpacked, self.largest, list(self.patches)
        return new


def pack(weight: Tensor) -> Packed:
    """Return a matrix, whose columns are a multiple of 32, in packed form."""
    blocks = weight.float().reshape(len(weight), -1, _BLOCK)
    scale = (blocks.abs().amax(-1, keepdim=True) / 127).half()
    numbers = (blocks / scale.float().clamp(min=1e-8)).round().to(torch.int8)
    packed = torch.cat([scale.view(torch.uint8), numbers.view(torch.uint8)], -1).flatten(1).as_subclass(Packed)
    packed.unpacked, packed.largest, packed.patches = weight.shape, False, []
    return packed


def unpack(packed: Packed) -> Tensor:
    """Return the matrix of `pack` in float32."""
    blocks = packed.as_subclass(Tensor).reshape(packed.size(0), -1, _BLOCK + 2)
    scale = blocks[..., :2].contiguous().view(torch.float16)
    return (scale.float() * blocks[..., 2:].contiguous().view(torch.int8).float()).reshape(packed.unpacked)


class Operations(comfy.ops.manual_cast):
    """ComfyUI's layers, with linear layers that accept packed weights."""

    class Linear(comfy.ops.manual_cast.Linear):
        def __init__(self, columns: int, rows: int, bias: bool = True, **_: object) -> None:
            torch.nn.Module.__init__(self)
            self.in_features, self.out_features, self.weight, self.bias = columns, rows, None, None

        def _load_from_state_dict(self, state_dict: dict, prefix: str, *_: object) -> None:
            for leaf in ("weight", "bias"):
                if (tensor := state_dict.get(f"{prefix}{leaf}")) is not None:
                    setattr(self, leaf, torch.nn.Parameter(tensor, requires_grad=False))

        def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
            if not isinstance(self.weight, Packed):
                super()._save_to_state_dict(destination, prefix, keep_vars)
                return
            destination[f"{prefix}weight"] = torch.empty(self.weight.size(), dtype=torch.uint8, device="meta")
            if self.bias is not None:
                destination[f"{prefix}bias"] = torch.empty_like(self.bias, device="meta")
            if self.weight.largest:
                unpacked = torch.empty(self.weight.unpacked, dtype=torch.float16, device="meta")
                destination[f"{prefix}temp.weight"] = unpacked

        def forward_comfy_cast_weights(self, x: Tensor) -> Tensor:
            if not isinstance(self.weight, Packed):
                return super().forward_comfy_cast_weights(x)
            weight = unpack(self.weight)
            for key, patches in self.weight.patches:
                weight = comfy.lora.calculate_weight(patches, weight, key)
            bias = None if self.bias is None else self.bias.to(x)
            return torch.nn.functional.linear(x, weight.to(x), bias)


class PackedPatcher(ModelPatcher):
    """A MODEL's patcher that stores the patches of a packed weight with the weight."""

    def patch_weight_to_device(
        self, key: str, device_to: torch.device | None = None, inplace_update: bool = False, **more: object
    ) -> object:
        weight = comfy.utils.get_attr(self.model, key)
        if key not in self.patches or not isinstance(weight, Packed):
            return super().patch_weight_to_device(key, device_to, inplace_update, **more)
        patched = weight.to(device_to)
        patched.patches = [(key, self.patches[key])]
        comfy.utils.set_attr_param(self.model, key, patched)
        return None

    def unpatch_model(self, device_to: torch.device | None = None, unpatch_weights: bool = True) -> None:
        for weight in self.model.parameters():
            if unpatch_weights and isinstance(weight, Packed):
                weight.patches = []
        super().unpatch_model(device_to, unpatch_weights)

    def load(self, *args: object, force_patch_weights: bool = False, **kwargs: object) -> None:
        super().load(*args, force_patch_weights=True, **kwargs)


def packed_model(state: dict[str, Tensor]) -> PackedPatcher:
    """Return a MODEL whose matrices in the transformer blocks are packed."""
    packed = {
        key: pack(value) if "blocks." in key and value.ndim == 2 and key.endswith(".weight") else value
        for key, value in state.items()
    }
    largest = max(
        (value for value in packed.values() if isinstance(value, Packed)), key=lambda value: value.size().numel()
    )
    largest.largest = True
    model = comfy.sd.load_diffusion_model_state_dict(packed, model_options={"custom_operations": Operations})
    return PackedPatcher(model.model, model.load_device, model.offload_device)
