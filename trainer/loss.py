"""What is minimised: the cross entropy of the trained tokens, all of a step's tokens weighing the same."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor


def loss_sum(logits: Float[Tensor, "N V"], labels: Int64[Tensor, " N"]) -> Float[Tensor, ""]:
    """Return the cross entropy summed (not averaged) over N trained tokens, in fp32.

    The caller divides by the number of trained tokens of the whole step, over all micro-batches and ranks: so a token
    weighs the same wherever it was dealt to. N may be 0; the sum is then 0 and still has a gradient, of zeros.
    """
    return F.cross_entropy(logits.to(torch.float32), labels, reduction="sum")
