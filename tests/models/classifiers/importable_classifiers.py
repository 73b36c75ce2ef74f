"""What a user might name by `import:importable_classifiers:...`, right and wrong."""

from __future__ import annotations

from torch import Tensor, nn

READY = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).train()
NUMBER = 7


class Probe(nn.Module):
    """Logits are the channel means, so that one sees that nothing is normalised."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


def probe() -> nn.Module:
    return Probe()


def no_model() -> int:
    return NUMBER


def fails() -> nn.Module:
    raise FileNotFoundError("no weights\nanywhere")


def wants_depth(depth: int) -> nn.Module:
    return nn.Linear(depth, depth)
