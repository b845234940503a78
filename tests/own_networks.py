"""Networks of no zoo: of a user's own, put together from parts of ours; and an Inception-v4 with few channels."""

import dataclasses

from torch import nn

import dsn_models
from dsn_models.gaternet import find_gate_points
from dsn_models.inception import Branches, ConvNorm


class UsersNetwork(nn.Module):
    """A network of a user's own, built from one gated block, one transition and one head."""

    def __init__(self):
        super().__init__()
        branch = dsn_models.create("concat-bc-100", block_layers=(2, 2, 2), image_size=8).fine
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.block, self.transition = branch.blocks[0], branch.transitions[0]
        self.head = dsn_models.densenet.Head(self.transition.conv.out_channels, 5)

    def forward(self, x):
        y, taken, _ = self.block(self.stem(x))
        return self.head(self.transition(y)), taken


class OwnNetwork(dsn_models.layer_skippable.LayerSkippableNetwork):
    """No network of the zoo, but of its parts, which it puts together itself."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def narrow_inception(model: nn.Module) -> nn.Module:
    """An Inception-v4 for images of 21 x 21, with every kind of branch in it but a few channels each."""
    size = 21
    model.stem = nn.Sequential(
        ConvNorm(3, 6, 3, stride=2, valid=True),
        Branches(6, nn.MaxPool2d(3, stride=2), ConvNorm(6, 10, 3, stride=2, valid=True)),
    )
    one_by_seven = nn.Sequential(ConvNorm(16, 5, 1), ConvNorm(5, 9, (1, 7)), ConvNorm(9, 6, (7, 1)))
    average = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    ends = Branches(6, ConvNorm(6, 5, (1, 3)), ConvNorm(6, 3, (3, 1)))
    model.units = nn.Sequential(
        Branches(16, ConvNorm(16, 7, 1), one_by_seven, nn.Sequential(average, ConvNorm(16, 4, 1))),
        Branches(17, ConvNorm(17, 5, 1), nn.Sequential(ConvNorm(17, 6, 1), ends), nn.MaxPool2d(3, stride=1, padding=1)),
    )
    model.head = nn.Sequential(*list(model.head)[:-1], nn.Linear(30, model.config.classes))
    model.config = dataclasses.replace(model.config, image_size=size)
    return model


def narrow_gaternet(model: nn.Module) -> nn.Module:
    narrow_inception(model.backbone)
    model.config = dataclasses.replace(model.config, image_size=model.backbone.config.image_size)
    model.gater.features.config = dataclasses.replace(model.gater.features.config, image_size=model.config.image_size)
    model.gate_points = find_gate_points(model.backbone, model.config.gated)
    model.gater.fc2 = nn.Linear(model.gater.fc2.in_features, model.num_gates)
    return model
