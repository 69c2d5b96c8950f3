"""The words for networks, regions and trivial completions. It imports nothing, for every `--help` reads it."""

REGIONS = ("whole", "hole")  # what a feature network is shown: the whole picture, or the hole alone (`crop_to_hole`)

TRIVIAL_WORDS = ("mean", "biharmonic")  # completions that have learnt nothing (`trivial`)

FEATURES_HELP = (
    "demo (a small classifier of digits, embedded), clip or clip:ID (any CLIPModel; ViT-H-14 if not given), classifier:ID (any "
    "image classifier of transformers, Hub id or folder), efficientnet_lite0 (trained on ImageNet; the extra 'features' brings "
    "it), inception or inception:FILE (torchvision's weights, downloaded if no file is given), fid_inception:FILE (those of "
    "pytorch-fid or torch-fidelity), places365:FILE (the ResNet-50 of Places-365)"
)
