"""MAE's own loss (He et al. 2022): clean pixels of hidden patches, from the visible patches of the attacked image."""

from __future__ import annotations

from torch import Tensor

from maep import registry
from maep.models.mae import MaskedAutoencoder
from maep.train.batch import mask_noise
from maep.train.loss_config import TermConfig
from maep.train.losses.inputs import LossInputs


@registry.loss(
    "masked",
    meaning="MAE's own loss: clean pixels of the hidden patches, from the visible patches of the attacked image.",
    order=2,
)
def masked(inputs: LossInputs, settings: TermConfig) -> Tensor:
    """Mean squared error on the patches that a mask of share `loss.masked_ratio` hides."""
    del settings
    mae = inputs.model.get_submodule("mae")
    assert isinstance(mae, MaskedAutoencoder)
    noise = mask_noise(mae, inputs.batch)
    with inputs.seeded():
        return mae.masked_loss(inputs.attacked, inputs.config.masked_ratio, noise, target=inputs.batch.images)
