r"""Train DeiT-III ViT-S/16 on ImageNet-1k at 224 pixels for 800 epochs, on one machine with eight GPUs.

Command:     torchrun --nproc-per-node 8 -m tokenlens_cli train deit3_small_imagenet1k --data imagenet
Specialized: the same with --specialize paper
FSDP2:       the same with --set strategy=fsdp2
SLURM:       srun --nodes 1 --ntasks-per-node 8 --gpus-per-node 8 --cpus-per-task 11 tokenlens train \
             deit3_small_imagenet1k --data imagenet --devices 8 --max-minutes 230
Data:        ImageNet-1k: folders train/ and val/ of 1,000 classes, 1.28 million images
Hardware:    8 GPUs with 40 GB
Time:        not measured; 2.8e19 FLOP, so 10 hours on 8 A100 at 30 % of their peak, if images load fast enough
Result:      the authors report 81.4 % top-1 for the standard model; not measured here

Settings: README_revenge.md of github.com/facebookresearch/deit (Touvron, Cord, Jégou: DeiT III, ECCV 2022).
Differences: no repeated augmentation (an epoch shows every image once); stochastic depth rises over the blocks from 0
to the stated rate (timm) instead of being constant; bfloat16 instead of float16.
"""

from tokenlens.training.recipe import Recipe

RECIPE = Recipe(
    objective="supervised",
    model="deit3_small_patch16_224",
    model_options={"drop_path_rate": 0.05, "init_values": 1e-4},
    objective_options={
        "loss": "bce",
        "bce_threshold": 0.0,
        "smoothing": 0.0,
        "mixup": 0.8,
        "cutmix": 1.0,
        "three_augment": True,
        "color_jitter": 0.3,
        "crop": "resized",
    },
    image_size=224,
    batch_size=2048,
    epochs=800,
    optimizer="lamb",
    lr=4e-3,
    lr_end=1e-5,
    warmup=5 / 800,
    weight_decay=0.05,
    clip_grad=1.0,
    precision="bf16-mixed",
    workers=10,
    log_every=50,
    checkpoint_minutes=20,
    diagnose_every=2500,
)
