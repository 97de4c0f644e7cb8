"""Released weights of ConvNeXts and vision transformers: those that timm knows by a file of their own."""

# As in `efficientnet_releases`. The .npz files are of another program: take timm's copy, and name it by --release.
# timm's of 384 pixels that squash the image into a square are left out, because no test transform here does so.
ROWS = (
    ('convnext_tiny.fb_in1k', 'convnext_tiny_1k_224_ema.pth', 224, 288, 1.0, 'bicubic', None, 82.694),
    ('convnext_tiny.fb_in22k_ft_in1k', 'convnext_tiny_22k_1k_224.pth', 224, 288, 1.0, 'bicubic', None, 78.95),
    ('convnext_base.fb_in1k', 'convnext_base_1k_224_ema.pth', 224, 288, 1.0, 'bicubic', None, 84.466),
    ('convnext_base.fb_in22k_ft_in1k', 'convnext_base_22k_1k_224.pth', 224, 288, 1.0, 'bicubic', None, 86.302),
    ('convnextv2_tiny.fcmae_ft_in1k', 'convnextv2_tiny_1k_224_ema.pt', 224, 288, 1.0, 'bicubic', None, 83.478),
    ('convnextv2_tiny.fcmae_ft_in22k_in1k', 'convnextv2_tiny_22k_224_ema.pt', 224, 288, 1.0, 'bicubic', None, 84.428),
    ('vit_small_patch16_224.augreg_in1k',
     'S_16-i1k-300ep-lr_0.001-aug_medium2-wd_0.1-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.01-res_224.npz',
     224, 224, 0.9, 'bicubic', 0.5, 78.842),
    ('vit_small_patch16_224.augreg_in21k_ft_in1k',
     'S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03-res_224.npz',
     224, 224, 0.9, 'bicubic', 0.5, 81.402),
    ('vit_base_patch16_224.augreg_in1k',
     'B_16-i1k-300ep-lr_0.001-aug_strong2-wd_0.1-do_0.1-sd_0.1--imagenet2012-steps_20k-lr_0.01-res_224.npz',
     224, 224, 0.9, 'bicubic', 0.5, 79.154),
    ('vit_base_patch16_224.augreg_in21k_ft_in1k',
     'B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.01-res_224.npz',
     224, 224, 0.9, 'bicubic', 0.5, 84.534),
    ('vit_base_patch16_224.orig_in21k_ft_in1k', 'jx_vit_base_p16_224-80ecf9dd.pth',
     224, 224, 0.9, 'bicubic', 0.5, 81.782),
    ('deit_small_patch16_224.fb_in1k', 'deit_small_patch16_224-cd65a155.pth', 224, 224, 0.9, 'bicubic', None, 79.856),
    ('deit_base_patch16_224.fb_in1k', 'deit_base_patch16_224-b5f2ef4d.pth', 224, 224, 0.9, 'bicubic', None, 81.98),
    ('deit3_small_patch16_224.fb_in1k', 'deit_3_small_224_1k.pth', 224, 224, 0.9, 'bicubic', None, 81.382),
    ('deit3_small_patch16_224.fb_in22k_ft_in1k', 'deit_3_small_224_21k.pth', 224, 224, 1.0, 'bicubic', None, 83.082),
    ('deit3_small_patch16_384.fb_in1k', 'deit_3_small_384_1k.pth', 384, 384, 1.0, 'bicubic', None, 83.432),
    ('deit3_small_patch16_384.fb_in22k_ft_in1k', 'deit_3_small_384_21k.pth', 384, 384, 1.0, 'bicubic', None, 84.846),
    ('deit3_base_patch16_224.fb_in1k', 'deit_3_base_224_1k.pth', 224, 224, 0.9, 'bicubic', None, 83.8),
    ('deit3_base_patch16_224.fb_in22k_ft_in1k', 'deit_3_base_224_21k.pth', 224, 224, 1.0, 'bicubic', None, 85.728),
)  # fmt: skip
