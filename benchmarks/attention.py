"""Attention back-ends: one attention alone, and the attention layers of a transformer."""

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
# By name: the only kernel that PyTorch may use (None: PyTorch chooses), and whether it gets a mask that hides nothing.
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
    """Return whether the flash-attn package can be imported."""
    return find_spec("flash_attn") is not None


def using_kernel(kernel: SDPBackend | None) -> AbstractContextManager[None]:
    """Make PyTorch's attention use this kernel within the context, or fail. None lets PyTorch choose."""
    return nullcontext() if kernel is None else sdpa_kernel(kernel)


def bare_attention(name: str, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Callable[[], Tensor]:
    """Return a function that computes one self-attention with one back-end.

    Args:
        name: a key of `KERNELS`, or `FLASH_PACKAGE`.
        query: `[1, S, heads, 128]`.
        key: shaped as `query`.
        value: shaped as `query`.
        mask: `[1, 1, 1, S]` of True; only the masked back-ends use it.
    """
    if name == FLASH_PACKAGE:
        from flash_attn import flash_attn_func

        def package() -> Tensor:
            return flash_attn_func(query, key, value)

        return package
    kernel, masked = KERNELS[name]

    def attend() -> Tensor:
        with using_kernel(kernel):
            return scaled_dot_product_attention(
                query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask if masked else None
            )

    return attend


class FixedAttention(HunyuanVideoAttnProcessor2_0):
    """diffusers' attention processor with one fixed back-end: a key of `KERNELS`, or `FLASH_PACKAGE`."""

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
        with using_kernel(self._kernel):
            mask = attention_mask if self._masked else None
            return super().__call__(attn, hidden_states, encoder_hidden_states, mask, image_rotary_emb)


def attention_layers(transformer: Any) -> list[Any]:
    """Return the attention modules of the blocks, in order."""
    return [block.attn for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks)]


def processors(transformer: nn.Module) -> list[Any]:
    """Return the attention processors of the blocks, in order."""
    return [layer.processor for layer in attention_layers(transformer)]


def set_processors(transformer: nn.Module, chosen: Sequence[Any]) -> None:
    """Set the attention processors of the blocks, one per layer, in order."""
    for layer, processor in zip(attention_layers(transformer), chosen, strict=True):
        layer.set_processor(processor)
