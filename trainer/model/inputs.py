"""What the model reads: the samples of one micro-batch, end to end."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from trainer.attention import Segments


@dataclass(frozen=True, slots=True)
class ModelInput:
    """T tokens of S samples end to end, with I pictures of P patches each.

    `input_ids` may hold anything where `image_slots` points; `positions` restart at 0 for each sample;
    `image_slots` (I*P of them) says where in 0..T the patch features go, picture by picture; I may be 0.
    """

    input_ids: Int64[Tensor, " T"]
    positions: Int64[Tensor, " T"]
    segments: Segments
    image_slots: Int64[Tensor, " slots"]
    pixels: UInt8[Tensor, "I 3 size size"]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "ModelInput":
        """Return the same input on a device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        padding = self.segments.key_padding
        return ModelInput(
            input_ids=move(self.input_ids),
            positions=move(self.positions),
            segments=replace(
                self.segments,
                cu_seqlens=move(self.segments.cu_seqlens),
                key_padding=None if padding is None else move(padding),
            ),
            image_slots=move(self.image_slots),
            pixels=move(self.pixels),
        )
