"""Small models with the names of children and methods of torch.hub's DINO, DINOv2 and DINOv3."""

import torch
from torch import nn


class Mlp(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class PatchEmbed(nn.Module):
    def __init__(self, image_size, patch_size, dim):
        super().__init__()
        self.img_size, self.patch_size = image_size, patch_size
        self.num_patches = (image_size // patch_size) ** 2
        self.proj = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Explicit softmax(QKᵀ); DINO also returns the pattern, DINOv2 scales the queries first."""

    def __init__(self, dim, heads, returns_pattern):
        super().__init__()
        self.num_heads, self.scale, self.returns_pattern = heads, (dim // heads) ** -0.5, returns_pattern
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)

    def forward(self, x):
        images, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(images, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)) * self.scale if self.returns_pattern else (q * self.scale) @ k.mT
        pattern = self.attn_drop(scores.softmax(dim=-1))
        out = self.proj_drop(self.proj((pattern @ v).transpose(1, 2).reshape(images, tokens, dim)))
        return (out, pattern) if self.returns_pattern else out


class DinoBlock(nn.Module):
    """The block of DINO, with one drop_path for both branches."""

    def __init__(self, dim, heads):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, heads, returns_pattern=True)
        self.drop_path = nn.Identity()
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim)

    def forward(self, x, return_attention=False):
        y, pattern = self.attn(self.norm1(x))
        if return_attention:
            return pattern
        x = x + self.drop_path(y)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class LayerScale(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 0.5))

    def forward(self, x):
        return x * self.gamma


class Dinov2Block(nn.Module):
    """The block of DINOv2, with LayerScale, and a drop_path that runs in training only."""

    def __init__(self, dim, heads, layer_scale=True):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, heads, returns_pattern=False)
        self.ls1 = LayerScale(dim) if layer_scale else nn.Identity()
        self.drop_path1 = nn.Identity()
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim)
        self.ls2 = LayerScale(dim) if layer_scale else nn.Identity()
        self.drop_path2 = nn.Identity()

    def forward(self, x):
        if self.training:
            x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
            return x + self.drop_path1(self.ls2(self.mlp(self.norm2(x))))
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """The model of DINO."""

    def __init__(self, image_size=32, patch_size=8, dim=32, depth=2, heads=2):
        super().__init__()
        self.patch_embed = PatchEmbed(image_size, patch_size, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.patch_embed.num_patches, dim))
        self.blocks = nn.ModuleList(DinoBlock(dim, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim), nn.Identity()

    def prepare_tokens(self, x):
        return torch.cat((self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)), dim=1) + self.pos_embed

    def forward(self, x):
        x = self.prepare_tokens(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


class BlockChunk(nn.ModuleList):
    def forward(self, x):
        for block in self:
            x = block(x)
        return x


class DinoVisionTransformer(nn.Module):
    """The model of DINOv2, with registers added after the position embedding, and optionally with blocks in chunks."""

    def __init__(self, image_size=32, patch_size=8, dim=32, depth=2, heads=2, registers=0, chunks=0, layer_scale=True):
        super().__init__()
        self.patch_embed = PatchEmbed(image_size, patch_size, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.patch_embed.num_patches, dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, dim)) if registers else None
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        blocks = [Dinov2Block(dim, heads, layer_scale) for _ in range(depth)]
        self.chunked_blocks = chunks > 0
        if chunks:
            size = depth // chunks
            starts = range(0, depth, size)
            blocks = [BlockChunk([nn.Identity()] * start + blocks[start : start + size]) for start in starts]
        self.blocks = nn.ModuleList(blocks)
        self.norm, self.head = nn.LayerNorm(dim), nn.Identity()

    def prepare_tokens_with_masks(self, x, masks=None):
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)), dim=1) + self.pos_embed
        if self.register_tokens is None:
            return x
        return torch.cat((x[:, :1], self.register_tokens.expand(len(x), -1, -1), x[:, 1:]), dim=1)

    def forward(self, x):
        x = self.prepare_tokens_with_masks(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class RopeAttention(nn.Module):
    """Attention over a list of crops, with the tokens behind the special ones rotated."""

    def __init__(self, dim, heads):
        super().__init__()
        self.num_heads = heads
        self.qkv, self.proj, self.proj_drop = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), nn.Identity()

    def forward(self, x, rope=None):
        images, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(images, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = (self.rotate(part, *rope) for part in (q, k))
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj_drop(self.proj(out.transpose(1, 2).reshape(images, tokens, dim)))

    def rotate(self, x, sin, cos):
        special = x.shape[-2] - len(sin)
        front, patches = x[..., :special, :], x[..., special:, :]
        first, second = patches.chunk(2, dim=-1)
        return torch.cat([front, patches * cos + torch.cat([-second, first], dim=-1) * sin], dim=-2)


class RopePositionEmbedding(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.register_buffer("periods", torch.arange(1, width // 4 + 1).float())

    def forward(self, H, W):
        rows, columns = torch.meshgrid(torch.arange(H) / H, torch.arange(W) / W, indexing="ij")
        angles = torch.stack([rows.flatten(), columns.flatten()], dim=-1)[..., None] * self.periods
        angles = angles.flatten(1).repeat(1, 2)
        return angles.sin(), angles.cos()


class Dinov3Block(nn.Module):
    """The block of DINOv3, which takes a list of crops and a list of their rotations."""

    def __init__(self, dim, heads):
        super().__init__()
        self.norm1, self.attn, self.ls1 = nn.LayerNorm(dim), RopeAttention(dim, heads), LayerScale(dim)
        self.norm2, self.mlp, self.ls2 = nn.LayerNorm(dim), Mlp(dim), LayerScale(dim)

    def forward(self, crops, ropes):
        results = []
        for x, rope in zip(crops, ropes, strict=True):
            y = x + self.ls1(self.attn(self.norm1(x), rope=rope))
            results.append(y + self.ls2(self.mlp(self.norm2(y))))
        return results


class Dinov3VisionTransformer(nn.Module):
    """The model of DINOv3, with storage tokens, and optionally with norms of its own for CLS and storage tokens."""

    def __init__(self, untie_cls=False, untie_local=False, patch_size=8, dim=32, depth=2, heads=2, storage=4):
        super().__init__()
        self.patch_embed = PatchEmbed(32, patch_size, dim)
        self.cls_token, self.n_storage_tokens = nn.Parameter(torch.zeros(1, 1, dim)), storage
        self.storage_tokens = nn.Parameter(torch.zeros(1, storage, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.rope_embed = RopePositionEmbedding(dim // heads)
        self.blocks = nn.ModuleList(Dinov3Block(dim, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim), nn.Identity()
        self.untie_cls_and_patch_norms, self.untie_global_and_local_cls_norm = untie_cls, untie_local
        self.cls_norm = nn.LayerNorm(dim) if untie_cls else None
        self.local_cls_norm = nn.LayerNorm(dim) if untie_local else None

    def prepare_tokens_with_masks(self, x, masks=None):
        special = torch.cat((self.cls_token, self.storage_tokens), dim=1).expand(len(x), -1, -1)
        size = self.patch_embed.patch_size
        return torch.cat((special, self.patch_embed(x)), dim=1), (x.shape[-2] // size, x.shape[-1] // size)

    def forward_features(self, x):
        crops, sizes = zip(
            *(self.prepare_tokens_with_masks(crop) for crop in (x if isinstance(x, list) else [x])), strict=True
        )
        crops = list(crops)
        for block in self.blocks:
            crops = block(crops, [self.rope_embed(H=rows, W=columns) for rows, columns in sizes])
        front = 1 + self.n_storage_tokens
        results = []
        for tokens in crops:
            if self.untie_cls_and_patch_norms or self.untie_global_and_local_cls_norm:
                special = (self.cls_norm if self.untie_cls_and_patch_norms else self.norm)(tokens[:, :front])
                patches = self.norm(tokens[:, front:])
            else:
                normed = self.norm(tokens)
                special, patches = normed[:, :front], normed[:, front:]
            results.append({"x_norm_clstoken": special[:, 0], "x_norm_patchtokens": patches, "x_prenorm": tokens})
        return results if isinstance(x, list) else results[0]

    def forward(self, x):
        return self.head(self.forward_features(x)["x_norm_clstoken"])
