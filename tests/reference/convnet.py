"""The ConvNet out of torch's modules."""

from torch import nn

from medistill.nets.convnet import ConvNet, Parameters


def modules(network: ConvNet, parameters: Parameters) -> nn.Sequential:
    """The same network, in float64, that holds these parameters."""
    volumes = len(network.shape) == 3
    convolution, norm, pool, pad = (
        (nn.Conv3d, nn.InstanceNorm3d, nn.AvgPool3d, nn.ConstantPad3d)
        if volumes
        else (nn.Conv2d, nn.InstanceNorm2d, nn.AvgPool2d, nn.ConstantPad2d)
    )
    blocks: list[nn.Module] = [pad(network.padding, 0.0)]
    channels = network.channels
    for block in range(network.convolutions):
        stride = 2 if volumes and block == 0 else 1
        blocks += [
            convolution(channels, network.filters, 3, padding=1, stride=stride),
            norm(network.filters, affine=True),
            nn.ReLU(),
            pool(2),
        ]
        channels = network.filters
    model = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(network.embedding_size, network.outputs)).double()
    for own, given in zip(model.parameters(), parameters.values(), strict=True):
        own.data.copy_(given)
    return model
