"""Attention back-ends, bare and inside a transformer."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any

from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

MASKED_CHOICE = "PyTorch's choice, masked"
# By name: the kernel that PyTorch is held to (None: its own choice), and whether it is given a mask that hides nothing.
KERNELS: dict[str, tuple[SDPBackend | None, bool]] = {
    "PyTorch's choice": (None, False),
    MASKED_CHOICE: (None, True),
    "flash": (SDPBackend.FLASH_ATTENTION, False),
    "cuDNN": (SDPBackend.CUDNN_ATTENTION, False),
    "cuDNN, masked": (SDPBackend.CUDNN_ATTENTION, True),
    "memory-efficient": (SDPBackend.EFFICIENT_ATTENTION, False),
    "memory-efficient, masked": (SDPBackend.EFFICIENT_ATTENTION, True),
}
ON_CPU = (None, SDPBackend.FLASH_ATTENTION)
FLASH_PACKAGE = "flash-attn package"


def has_flash_package() -> bool:
    """Whether flash-attn can be imported."""
    return find_spec("flash_attn") is not None


def held_to(kernel: SDPBackend | None) -> AbstractContextManager[None]:
    """Within it, PyTorch's attention uses that kernel or fails."""
    return nullcontext() if kernel is None else sdpa_kernel(kernel)


def bare_attention(name: str, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Callable[[], Tensor]:
    """One self-attention by a back-end of `KERNELS` or by the flash-attn package.

    Args:
        query, key, value: `[1, S, heads, 128]`.
        mask: `[1, 1, 1, S]` of True, used by the masked ones.
    """
    if name == FLASH_PACKAGE:
        from flash_attn import flash_attn_func

        def package() -> Tensor:
            return flash_attn_func(query, key, value)

        return package
    kernel, masked = KERNELS[name]

    def attend() -> Tensor:
        with held_to(kernel):
            return scaled_dot_product_attention(
                query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask if masked else None
            )

    return attend


class HeldAttention(HunyuanVideoAttnProcessor2_0):
    """diffusers' attention held to one back-end of `KERNELS`, or run by the flash-attn package."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._kernel, self._masked = KERNELS.get(name, (None, False))
        if name == FLASH_PACKAGE:
            self._attention_backend = AttentionBackendName.FLASH

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        with held_to(self._kernel):
            mask = attention_mask if self._masked else None
            return super().__call__(attn, hidden_states, encoder_hidden_states, mask, image_rotary_emb)


def attention_layers(transformer: Any) -> list[Any]:
    """The attention modules of the blocks, in order."""
    return [block.attn for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks)]


def processors(transformer: nn.Module) -> list[Any]:
    """What the blocks' attention runs by."""
    return [layer.processor for layer in attention_layers(transformer)]


def set_processors(transformer: nn.Module, chosen: Sequence[Any]) -> None:
    """Let the blocks' attention run by these, one for each layer."""
    for layer, processor in zip(attention_layers(transformer), chosen, strict=True):
        layer.set_processor(processor)
