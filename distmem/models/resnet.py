"""torchvision's ResNets, with its parameter names: weights saved by torchvision load here and the other way round."""

from __future__ import annotations

from torch import Tensor, nn

from distmem.vision import load_torchvision


class ResNet(nn.Module):
    """x: (n, in_channels, h, w) -> logits (n, classes).

    small_input: a 3x3 stem of stride 1 without max-pooling, for pictures of 28 or 32 pixels
    (He et al. 2016, section 4.2).
    """

    def __init__(self, depth: int, classes: int, in_channels: int, small_input: bool):
        super().__init__()
        net = getattr(load_torchvision().models, f"resnet{depth}")(weights=None, num_classes=classes)
        kernel, stride, padding = (3, 1, 1) if small_input else (7, 2, 3)
        self.conv1 = nn.Conv2d(in_channels, 64, kernel, stride, padding, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1, self.relu = net.bn1, net.relu
        self.maxpool = nn.Identity() if small_input else net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        self.avgpool, self.fc = net.avgpool, net.fc

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for block in self.blocks():
            x = block(x)
        return self.fc(self.avgpool(x).flatten(1))

    def blocks(self) -> list[nn.Module]:
        return [block for layer in (self.layer1, self.layer2, self.layer3, self.layer4) for block in layer]


class ResNet18(ResNet):
    def __init__(self, classes: int = 1000, in_channels: int = 3, small_input: bool = False):
        super().__init__(18, classes, in_channels, small_input)


class ResNet34(ResNet):
    def __init__(self, classes: int = 1000, in_channels: int = 3, small_input: bool = False):
        super().__init__(34, classes, in_channels, small_input)


class ResNet50(ResNet):
    def __init__(self, classes: int = 1000, in_channels: int = 3, small_input: bool = False):
        super().__init__(50, classes, in_channels, small_input)


class ResNet101(ResNet):
    def __init__(self, classes: int = 1000, in_channels: int = 3, small_input: bool = False):
        super().__init__(101, classes, in_channels, small_input)


class ResNet152(ResNet):
    def __init__(self, classes: int = 1000, in_channels: int = 3, small_input: bool = False):
        super().__init__(152, classes, in_channels, small_input)
