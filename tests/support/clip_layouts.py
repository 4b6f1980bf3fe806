"""Small CLIP models with the names, the order of axes and the calls of OpenAI's ``clip`` and of open_clip 3.3."""

from collections import OrderedDict

import torch
from torch import nn


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class LayerNorm(nn.LayerNorm):
    """LayerNorm in float32, of OpenAI's package."""

    def forward(self, x):
        return super().forward(x.type(torch.float32)).type(x.dtype)


def _mlp(width):
    layers = {"c_fc": nn.Linear(width, 4 * width), "gelu": QuickGELU(), "c_proj": nn.Linear(4 * width, width)}
    return nn.Sequential(OrderedDict(layers))


class OpenAIBlock(nn.Module):
    """The block of OpenAI's package, on (tokens, images, channels)."""

    def __init__(self, width, heads, attn_mask=None):
        super().__init__()
        self.attn, self.ln_1 = nn.MultiheadAttention(width, heads), LayerNorm(width)
        self.mlp, self.ln_2 = _mlp(width), LayerNorm(width)
        self.attn_mask = attn_mask

    def attention(self, x):
        return self.attn(x, x, x, need_weights=False, attn_mask=self.attn_mask)[0]

    def forward(self, x):
        x = x + self.attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class LayerScale(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 0.5))

    def forward(self, x):
        return x * self.gamma


class OpenClipBlock(nn.Module):
    """The block of open_clip, on (images, tokens, channels), with LayerScale or Identity."""

    def __init__(self, width, heads, layer_scale=False):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), nn.MultiheadAttention(width, heads, batch_first=True)
        self.ls_1 = LayerScale(width) if layer_scale else nn.Identity()
        self.ln_2, self.mlp = nn.LayerNorm(width), _mlp(width)
        self.ls_2 = LayerScale(width) if layer_scale else nn.Identity()

    def attention(self, q_x, k_x=None, v_x=None):
        k_x, v_x = q_x if k_x is None else k_x, q_x if v_x is None else v_x
        return self.attn(q_x, k_x, v_x, need_weights=False, attn_mask=None)[0]

    def forward(self, q_x):
        x = q_x + self.ls_1(self.attention(q_x=self.ln_1(q_x)))
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class Transformer(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.resblocks = blocks

    def forward(self, x):
        for block in self.resblocks:
            x = block(x)
        return x


class VisionTransformer(nn.Module):
    """The image tower; OpenAI's runs its blocks on (tokens, images, channels) and normalizes CLS only."""

    def __init__(self, kind="openai", layer_scale=False, width=32, heads=2, depth=2, image_size=32, patch_size=8):
        super().__init__()
        self.kind = kind
        if kind == "openai":
            self.input_resolution = image_size
            blocks = nn.Sequential(*[OpenAIBlock(width, heads) for _ in range(depth)])
        else:
            self.image_size, self.attn_pool, self.final_ln_after_pool = (image_size, image_size), None, False
            blocks = nn.ModuleList(OpenClipBlock(width, heads, layer_scale) for _ in range(depth))
        norm = LayerNorm if kind == "openai" else nn.LayerNorm
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((image_size // patch_size) ** 2 + 1, width))
        self.ln_pre, self.transformer, self.ln_post = norm(width), Transformer(blocks), norm(width)
        self.proj = nn.Parameter(torch.randn(width, 16))

    def forward(self, x):
        x = self.conv1(x).flatten(2).permute(0, 2, 1)
        cls = self.class_embedding.to(x.dtype) + torch.zeros(len(x), 1, x.shape[-1], dtype=x.dtype)
        x = self.ln_pre(torch.cat([cls, x], dim=1) + self.positional_embedding.to(x.dtype))
        if self.kind == "openai":
            x = self.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
            return self.ln_post(x[:, 0, :]) @ self.proj
        return self.ln_post(self.transformer(x))[:, 0] @ self.proj


class CLIP(nn.Module):
    """An image tower in ``visual``, and the text tower's blocks on top, as in both packages."""

    def __init__(self, kind="openai", **kwargs):
        super().__init__()
        self.visual = VisionTransformer(kind, **kwargs)
        mask = torch.full((8, 8), float("-inf")).triu_(1)
        self.transformer = Transformer(nn.Sequential(OpenAIBlock(32, 2, mask), OpenAIBlock(32, 2, mask)))
        self.token_embedding, self.ln_final = nn.Embedding(99, 32), LayerNorm(32)
        self.positional_embedding = nn.Parameter(torch.randn(8, 32))

    def encode_image(self, image):
        return self.visual(image.type(self.visual.conv1.weight.dtype))
