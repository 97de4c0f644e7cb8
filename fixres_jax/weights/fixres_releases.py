"""Networks that the authors of FixRes have adapted, as the READMEs of facebookresearch/FixRes list them.

The weights are under CC BY-NC 4.0. Of FixEfficientNet no file is listed: its rows say how one that you have is tested.
"""

URL = 'https://dl.fbaipublicfiles.com/FixRes_data/FixRes_Pretrained_Models/'

# Name, architecture, file at URL, resolution of training and of the test (pixels), top-1 (percent). Those of v2 were
# fine-tuned on mirrored, jittered and shifted images; those of ns began with noisy student's weights.
ROWS = (
    ('resnet50_no_adaptation', 'resnet50', 'ResNet_no_adaptation.pth', 224, 224, 77.0),
    ('resnet50', 'resnet50', 'ResNetFinetune.pth', 224, 384, 79.0),
    ('resnet50_v2', 'resnet50', 'ResNet50_v2.pth', 224, 384, 79.1),
    ('resnet50_cutmix', 'resnet50', 'ResNetCutMix.pth', 224, 320, 79.7),
    ('resnet50_cutmix_v2', 'resnet50', 'ResNet50_CutMix_v2.pth', 224, 320, 79.8),
    ('pnasnet5large', 'pnasnet5large', 'PNASNet.pth', 331, 480, 83.7),
    ('resnext101_32x48d', 'resnext101_32x48d', 'ResNeXt_101_32x48d.pth', 224, 320, 86.3),
    ('resnext101_32x48d_v2', 'resnext101_32x48d', 'ResNext101_32x48d_v2.pth', 224, 320, 86.4),
    ('efficientnet_b0', 'tf_efficientnet_b0', '', 224, 320, 79.3),
    ('efficientnet_b0_ns', 'tf_efficientnet_b0', '', 224, 320, 80.2),
    ('efficientnet_b1', 'tf_efficientnet_b1', '', 240, 384, 81.3),
    ('efficientnet_b1_ns', 'tf_efficientnet_b1', '', 240, 384, 82.6),
    ('efficientnet_b2', 'tf_efficientnet_b2', '', 260, 420, 82.0),
    ('efficientnet_b2_ns', 'tf_efficientnet_b2', '', 260, 420, 83.6),
    ('efficientnet_b3', 'tf_efficientnet_b3', '', 300, 472, 83.0),
    ('efficientnet_b3_ns', 'tf_efficientnet_b3', '', 300, 472, 85.0),
    ('efficientnet_b4', 'tf_efficientnet_b4', '', 380, 512, 84.0),
    ('efficientnet_b4_ns', 'tf_efficientnet_b4', '', 380, 472, 85.9),
    ('efficientnet_b5', 'tf_efficientnet_b5', '', 456, 576, 84.7),
    ('efficientnet_b5_ns', 'tf_efficientnet_b5', '', 456, 576, 86.4),
    ('efficientnet_b6', 'tf_efficientnet_b6', '', 528, 576, 84.9),
    ('efficientnet_b6_ns', 'tf_efficientnet_b6', '', 528, 680, 86.7),
    ('efficientnet_b7', 'tf_efficientnet_b7', '', 600, 632, 85.3),
    ('efficientnet_b7_ns', 'tf_efficientnet_b7', '', 600, 632, 87.1),
    ('efficientnet_b8', 'tf_efficientnet_b8', '', 672, 800, 85.7),
    ('efficientnet_l2_ns', 'tf_efficientnet_l2', '', 475, 600, 88.5),
)

# Architecture -> what differs from the others: they have ImageNet's mean and std, those that began with AdvProp's too.
OPTIONS = {'pnasnet5large': {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5), 'padding': 'cadene'}}
