"""A small model with the names of children and methods of torch.hub's CAPI."""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention


class CapiAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.num_heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x, coords, context=None):
        context = x if context is None else context
        # The original rotates q and k by their coordinates; adding these serves as well here.
        sources = (x + coords, context + (coords if context is x else 0), context)
        q, k, v = (
            project(part).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for project, part in zip((self.q_proj, self.k_proj, self.v_proj), sources, strict=True)
        )
        return self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class CapiMlp(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.fc1, self.act, self.fc2 = (
            nn.Linear(dim, 4 * dim, bias=False),
            nn.GELU(),
            nn.Linear(4 * dim, dim, bias=False),
        )

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Residual(nn.Module):
    def __init__(self, norm, fn):
        super().__init__()
        self.norm, self.fn = norm, fn

    def forward(self, x, **kwargs):
        return x + self.fn(self.norm(x), **kwargs)


class CapiBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.residual1 = Residual(nn.RMSNorm(dim, eps=1e-5), CapiAttention(dim, heads))
        self.residual2 = Residual(nn.RMSNorm(dim, eps=1e-5), CapiMlp(dim))

    def forward(self, x, context=None, coords=None):
        return self.residual2(self.residual1(x, context=context, coords=coords))


class CapiTransformer(nn.Module):
    def __init__(self, dim, depth, heads):
        super().__init__()
        self.blocks = nn.ModuleList(CapiBlock(dim, heads) for _ in range(depth))

    def forward(self, x, return_layers, **kwargs):
        outputs = {0: x} if 0 in return_layers else {}
        for index, block in enumerate(self.blocks):
            x = block(x, **kwargs)
            if index + 1 in return_layers:
                outputs[index + 1] = x
        return outputs


class EncoderDecoder(nn.Module):
    """The model of CAPI: an encoder with registers, and a predictor that attends to the encoder's output."""

    def __init__(self, patch_size=8, dim=32, depth=2, heads=2, registers=4):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, patch_size, stride=patch_size)
        self.registers, self.mask_token = (
            nn.Parameter(torch.zeros(1, registers, dim)),
            nn.Parameter(torch.zeros(1, dim)),
        )
        self.encoder, self.decoder = CapiTransformer(dim, depth, heads), CapiTransformer(dim, depth, heads)
        self.enc_norm, self.dec_norm = (nn.RMSNorm(dim, eps=1e-5, elementwise_affine=False) for _ in range(2))
        self.out_layer = depth

    def forward(self, x):
        patches = self.patch_embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.registers.expand(len(x), -1, -1), patches), dim=1)
        coords = torch.linspace(0, 1, tokens.shape[1])[None, :, None].expand(len(x), -1, -1)
        layers = {self.out_layer, len(self.encoder.blocks)}
        outputs = {key: self.enc_norm(value) for key, value in self.encoder(tokens, layers, coords=coords).items()}
        masked = self.mask_token[None].expand(len(x), patches.shape[1], -1)
        context = outputs[len(self.encoder.blocks)]
        predicted = self.dec_norm(self.decoder(masked, {1}, context=context, coords=torch.zeros(1, 1, 1))[1])
        encoded = outputs[self.out_layer]
        return predicted.mean(1), encoded[:, : self.registers.shape[1]], encoded[:, self.registers.shape[1] :]
