r"""Train DINOv2 ViT-L/14 on ImageNet-22k at 224 pixels for 625,000 steps, on twelve machines with eight GPUs each.

Command:     torchrun --nnodes 12 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \
             -m tokenlens_cli train dinov2_large_imagenet22k --data imagenet22k
Specialized: the same with --specialize paper
Registers:   the same with --set model=vit_large_patch14_reg4_dinov2
Bias:        the same with --set attention_bias=true
FSDP2:       the same with --set strategy=fsdp2
SLURM:       srun --nodes 12 --ntasks-per-node 8 --gpus-per-node 8 --cpus-per-task 11 tokenlens train \
             dinov2_large_imagenet22k --data imagenet22k --devices 8 --nodes 12 --max-minutes 230
Data:        ImageNet-22k, 14.2 million images; labels are not used
Hardware:    96 GPUs with 80 GB, 32 images each at a time
Time:        the authors report about 3.3 days on 96 A100; not measured here
Result:      the authors report 82.0 % k-NN and 84.5 % linear on ImageNet-1k for the standard model; not measured here

Settings: configs/train/vitl14.yaml over ssl_default_config.yaml of github.com/facebookresearch/dinov2 (Oquab et al.,
arXiv 2304.07193). Differences: the learning rate of the patch embedding is not lowered; stochastic depth rises over
the blocks from 0 to the stated rate (timm) instead of being constant; the MLP is that of the released ViT-L, not
SwiGLU; both heads have a bottleneck of 256 (theirs: 384 for CLS); KoLeo looks for neighbours over all processes;
bfloat16 instead of float16. Their last layer is frozen for one epoch of 1,250 steps, stated here in passes over the
images.
"""

from tokenlens.training.recipe import Recipe

BATCH = 96 * 32

RECIPE = Recipe(
    objective="dinov2",
    model="vit_large_patch14_dinov2",
    model_options={"drop_path_rate": 0.4, "init_values": 1e-5, "dynamic_img_size": True},
    objective_options={
        "local_crops": 8,
        "local_size": 98,
        "global_scale": (0.32, 1.0),
        "local_scale": (0.05, 0.32),
        "prototypes": 131072,
        "hidden": 2048,
        "bottleneck": 256,
        "tie_heads": False,
        "centring": "sinkhorn",
        "koleo": 0.1,
        "ibot": 1.0,
        "masked_crops": 0.5,
        "mask_ratio": (0.1, 0.5),
        "student_temperature": 0.1,
        "teacher_temperature_start": 0.04,
        "teacher_temperature": 0.07,
        "teacher_temperature_warmup": 30 / 500,
        "momentum": 0.994,
        "last_layer_held": 1250 * BATCH / 14.2e6,
    },
    image_size=224,
    batch_size=BATCH,
    steps=625_000,
    lr=2e-4 * (BATCH / 1024) ** 0.5,
    lr_end=1e-6,
    warmup=80 / 500,
    weight_decay=0.04,
    weight_decay_end=0.2,
    clip_grad=3.0,
    precision="bf16-mixed",
    workers=10,
    log_every=50,
    checkpoint_minutes=20,
    diagnose_every=2500,
)
