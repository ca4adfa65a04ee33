"""An embedding table that costs nothing to build without memory."""

from torch import nn


class Table(nn.Embedding):
    """`nn.Embedding`, not drawn at random where there is nothing to fill.

    Models are built on the meta device and filled from a file; a draw there does nothing but load torch's compiler,
    which takes longer than torch itself.
    """

    def reset_parameters(self) -> None:
        """Draw the rows, unless they lie on the meta device."""
        if not self.weight.is_meta:
            super().reset_parameters()
