r"""Train DINOv2 ViT-S/14 on ImageNet-22k at 224 pixels for 625,000 steps, on four machines with eight GPUs each.

Command:     torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m tokenlens_cli \
             train dinov2_small_imagenet22k --data imagenet22k
Specialized: the same with --specialize paper
Registers:   the same with --set model=vit_small_patch14_reg4_dinov2
Bias:        the same with --set attention_bias=true
FSDP2:       the same with --set strategy=fsdp2
SLURM:       srun --nodes 4 --ntasks-per-node 8 --gpus-per-node 8 --cpus-per-task 11 tokenlens train \
             dinov2_small_imagenet22k --data imagenet22k --devices 8 --nodes 4 --max-minutes 230
Data:        ImageNet-22k, 14.2 million images; labels are not used
Hardware:    32 GPUs with 80 GB, 96 images each at a time
Time:        not measured; 25 GPU days plus the heads, from ViT-L's 317 GPU days scaled by the backbone's FLOPs
Result:      not measured; the released ViT-S is distilled from ViT-g, so there is no number to compare with

See dinov2_large_imagenet22k for the source of the settings and differences from it. The authors publish none for
training this size from scratch. All settings but stochastic depth (0.1, as in iBOT for this size) are those of ViT-L,
so that the three sizes can be compared.
"""

from dataclasses import replace

from tokenlens.training.recipes.dinov2_large_imagenet22k import RECIPE as LARGE

RECIPE = replace(LARGE, model="vit_small_patch14_dinov2", model_options={**LARGE.model_options, "drop_path_rate": 0.1})
