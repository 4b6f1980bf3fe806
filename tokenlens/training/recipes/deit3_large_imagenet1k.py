r"""Train DeiT-III ViT-L/16 on ImageNet-1k at 192 pixels for 800 epochs, on four machines with eight GPUs each.

Command:     torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m tokenlens_cli \
             train deit3_large_imagenet1k --data imagenet
Specialized: the same with --specialize paper
FSDP2:       the same with --set strategy=fsdp2
SLURM:       srun --nodes 4 --ntasks-per-node 8 --gpus-per-node 8 --cpus-per-task 11 tokenlens train \
             deit3_large_imagenet1k --data imagenet --devices 8 --nodes 4 --max-minutes 230
Data:        ImageNet-1k: folders train/ and val/ of 1,000 classes, 1.28 million images
Hardware:    32 GPUs with 40 GB, 64 images each at a time
Time:        not measured; 2.8e20 FLOP, so 19 hours on 32 A100 at 40 % of their peak
Result:      the authors report 84.9 % top-1 for the standard model after 20 more epochs at 224 pixels, which are not
             part of this recipe; not measured here

See deit3_small_imagenet1k for the source of the settings and differences from it. ViT-L uses a lower learning rate,
more stochastic depth and smaller images than ViT-S.
"""

from dataclasses import replace

from tokenlens.training.recipes.deit3_base_imagenet1k import RECIPE as BASE

RECIPE = replace(BASE, model="deit3_large_patch16_224", model_options={**BASE.model_options, "drop_path_rate": 0.45})
