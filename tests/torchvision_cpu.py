"""Make torchvision importable beside a CPU build of torch: import this first. For comparisons in tests only.

The operators compiled into torchvision's wheels load only beside the CUDA build of torch, and its import
stops at the first that is missing. The models and image transforms use none of them: the names are enough.
"""

import torch

_OPERATORS = (
    'nms', 'qnms', 'roi_align', 'qroi_align', '_roi_align_backward', 'roi_pool', '_roi_pool_backward',
    'ps_roi_align', '_ps_roi_align_backward', 'ps_roi_pool', '_ps_roi_pool_backward',
    'deform_conv2d', '_deform_conv2d_backward',
)  # fmt: skip

if '+cpu' in torch.__version__:
    library = torch.library.Library('torchvision', 'DEF')
    for operator in _OPERATORS:
        library.define(f'{operator}(Tensor x) -> Tensor')
