r"""Train DeiT-III ViT-B/16 on ImageNet-1k at 192 pixels for 800 epochs, on one machine with eight GPUs.

Command:     torchrun --nproc-per-node 8 -m tokenlens_cli train deit3_base_imagenet1k --data imagenet
Specialized: the same with --specialize paper
FSDP2:       the same with --set strategy=fsdp2
SLURM:       srun --nodes 1 --ntasks-per-node 8 --gpus-per-node 8 --cpus-per-task 11 tokenlens train \
             deit3_base_imagenet1k --data imagenet --devices 8 --max-minutes 230
Data:        ImageNet-1k: folders train/ and val/ of 1,000 classes, 1.28 million images
Hardware:    8 GPUs with 40 GB
Time:        not measured; 7.8e19 FLOP, so 22 hours on 8 A100 at 40 % of their peak
Result:      the authors report 83.8 % top-1 for the standard model after 20 more epochs at 224 pixels, which are not
             part of this recipe; not measured here

See deit3_small_imagenet1k for the source of the settings and differences from it. ViT-B uses a lower learning rate,
more stochastic depth and smaller images than ViT-S.
"""

from dataclasses import replace

from tokenlens.training.recipes.deit3_small_imagenet1k import RECIPE as SMALL

RECIPE = replace(
    SMALL,
    model="deit3_base_patch16_224",
    model_options={**SMALL.model_options, "drop_path_rate": 0.2},
    image_size=192,
    lr=3e-3,
)
