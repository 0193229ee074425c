"""The optimiser's step, in PyTorch's operations."""

from torch import Tensor


def sgd_step(
    value: Tensor,
    grad: Tensor,
    momentum: Tensor,
    lr: Tensor,
    *,
    keep: float,
    decay: float,
    scale: float = 1.0,
    row: Tensor | None = None,
    copy: Tensor | None = None,
) -> None:
    """One step of torch.optim.SGD on flat float32 tensors: value and momentum, and a copy of value in less precision.

    The gradient is multiplied by `scale` (1 over the loss scale). lr [G] is read on the device: number i takes
    lr[row[i]], or lr[0] without `row`. keep: the factor of the momentum; decay: the weight decay.
    """
    momentum.mul_(keep).add_(grad, alpha=scale).add_(value, alpha=decay)
    value.addcmul_(momentum, lr[0] if row is None else lr[row], value=-1)
    if copy is not None:
        copy.copy_(value)
