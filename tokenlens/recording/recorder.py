"""Forward hooks on an unmodified model, which pass the activations at every site to an observer."""

# Shapes: B images, T tokens, D channels.

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tokenlens.families import BlockTaps, Family, Pooling, SplitNorm, Tap
from tokenlens.recording.attention import AttentionCall
from tokenlens.recording.capture import AttentionCapture, NormCall, NormCapture
from tokenlens.tokens import HEAD_SITES, NORM_SITES, Key, Site, TokenLayout


class IncompleteRecording(ValueError):
    """A forward pass did not reach every expected site exactly once."""


@dataclass(frozen=True)
class PooledTokens:
    """The pooling of a model's tokens by the attention of its latents.

    Args:
        layout: the pooled tokens; without special tokens if only patches are pooled.
        tokens_BTD: the pooled tokens.
        latent_BLD: the latents after pooling; one if the model then takes the first of several, or their mean.
        call: their attention: q is (B, H, latents, d).
    """

    layout: TokenLayout
    tokens_BTD: Tensor
    latent_BLD: Tensor
    call: AttentionCall


class Observer(Protocol):
    """The methods that a ``Recorder`` calls. Tensors belong to the model: reduce them, or copy what you keep."""

    def tokens(self, block: int | None, site: Site, x_BTD: Tensor) -> None:
        """Receive the tokens at a site that is not a norm."""

    def norm(
        self, block: int | None, site: Site, module: nn.Module, x_BTD: Tensor, y_BTD: Tensor, call: NormCall | None
    ) -> None:
        """Receive a norm's input and output, and the statistics of its kernel; the output is the site's activation."""

    def attention(self, block: int, call: AttentionCall) -> None:
        """Receive the call of one block's attention kernel."""


def _first_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return next((found for item in items if (found := _first_tensor(item)) is not None), None)


def resolve_blocks(blocks: Iterable[int], count: int) -> list[int]:
    """Return block numbers from 0, in order and without duplicates; negative ones count from the end.

    Raises:
        LookupError: for a block that a model of ``count`` blocks does not have.
    """
    numbers = sorted({block + count if block < 0 else block for block in blocks})
    outside = [block for block in numbers if not 0 <= block < count]
    if outside:
        raise LookupError(f"the model has blocks 0 to {count - 1}, got {outside}")
    return numbers


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to eval mode without gradients; restore the mode of every module afterwards, also after an error."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        # Leave inference mode, even if the caller set it: attention cannot be captured in it, and buffers that a model
        # creates lazily could not be used for training afterwards.
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


class Recorder:
    """A context manager that hooks a model; the hooks are removed at its end, also after an error or an interrupt.

    Args:
        model: an unmodified Vision Transformer.
        family: the family of the model, which knows its blocks and sites.
        layout: the model's tokens; the number of tokens of every activation is checked against it.
        observer: receives the activations.
        sites: the sites to observe (default all); those that the model lacks are left out, see ``expected``.
        blocks: the blocks to observe (default all); negative ones count from the end.
        pooled: receives the site ``pool``, if the model has it.

    Raises:
        LookupError: for a block that the model does not have.
        IncompleteRecording: from ``run``, if a forward pass did not reach every expected site exactly once.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        layout: TokenLayout,
        observer: Observer,
        sites: Iterable[str] | None = None,
        blocks: Iterable[int] | None = None,
        pooled: Callable[[PooledTokens], None] | None = None,
    ) -> None:
        self.model = model
        self.family = family
        self.layout = layout
        self.observer = observer
        self.pooled = pooled
        self.sites = {Site(site) for site in (Site if sites is None else sites)}
        self._modules = list(family.blocks(model))
        self._layouts = [family.block_layout(module, layout) for module in self._modules]
        if not self._modules:
            raise LookupError(f"the family found no transformer block in a {type(model).__qualname__}")
        count = len(self._modules)
        self.blocks = resolve_blocks(range(count) if blocks is None else blocks, count)
        self.expected: set[Key] = set()
        self._seen: set[Key] = set()
        self._stack = ExitStack()
        self._captures: list[AttentionCapture | NormCapture] = []

    def __enter__(self) -> Recorder:
        try:
            for block in self.blocks:
                self._hook_block(block)
            norm = self.family.final_norm(self.model) if Site.FINAL_NORM in self.sites else None
            if norm is not None:
                self._hook_norm(None, Site.FINAL_NORM, norm)
            pooling = self.family.pooling(self.model)
            if pooling is not None and self.pooled is not None and Site.POOL in self.sites:
                self._hook_pooling(pooling, self.pooled)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        while self._captures:
            self._captures.pop().__exit__(None, None, None)

    def run(self, images: Tensor) -> Any:
        """Run the model and return its output, after checking that every expected site was seen."""
        self._seen.clear()
        try:
            output = self.family.forward(self.model, images)
        except Exception as error:
            # It does not run under a dispatch mode, whose error says nothing to a user.
            if any(frame.filename.endswith("flex_attention.py") for frame in traceback.extract_tb(error.__traceback__)):
                raise ValueError(
                    f"this {type(self.model).__qualname__} computes attention with flex_attention, whose kernel cannot "
                    "be observed; switch to scaled_dot_product_attention (in transformers "
                    "model.set_attn_implementation('sdpa'))"
                ) from error
            raise
        missing = self.expected - self._seen
        if missing:
            raise IncompleteRecording(_missing_text(missing, self.model))
        return output

    # -- hooks

    def _hook_block(self, block: int) -> None:
        taps = self.family.taps(self._modules[block])
        for site, tap in taps.sites.items():
            if site not in self.sites:
                continue
            if site in NORM_SITES:
                self._hook_norm(block, site, tap.module, taps.sequence_first)
            else:
                self._hook_tokens(block, site, tap, taps.sequence_first)
        if self.sites & {*HEAD_SITES} and taps.attention is not None:
            observe = self.observer.attention
            self._hook_attention(
                (block, "attention"), self._layouts[block], taps, lambda call, *_: observe(block, call)
            )

    def _hook_tokens(self, block: int, site: Site, tap: Tap, sequence_first: bool) -> None:
        self.expected.add((block, site))
        modules = (tap.module, *tap.plus)
        parts: list[Tensor | None] = []

        def observe(value: Any) -> None:
            parts.append(_first_tensor(value))
            if len(parts) < len(modules):
                return
            found = parts[0] if len(parts) == 1 else sum(part for part in parts if part is not None)
            parts.clear()
            x = self._check_tokens(block, site, _first_tensor(found), sequence_first)
            if tap.gain is not None:
                x = tap.gain.detach() * x.detach()
            self._notify(x, self.observer.tokens, block, site, x)

        for module in modules:
            if tap.side == "input":
                self._hook(module.register_forward_pre_hook(lambda _, *given: observe(given), with_kwargs=True))
            else:
                self._hook(module.register_forward_hook(lambda _module, _args, output: observe(output)))

    def _hook_norm(self, block: int | None, site: Site, module: nn.Module, sequence_first: bool = False) -> None:
        self.expected.add((block, site))
        if isinstance(module, SplitNorm):
            self._hook_split_norm(block, site, module)
            return

        def begin(x: Tensor | None) -> NormCapture:
            self._check_tokens(block, site, x, sequence_first)
            assert x is not None
            return NormCapture(x)

        def end(call: NormCall | None, x: Tensor, y: Tensor) -> None:
            if sequence_first:
                x, y = x.transpose(0, 1), y.transpose(0, 1)
                if call is not None:
                    call = NormCall(None if call.mean_BT is None else call.mean_BT.T, call.rstd_BT.T)
            assert x.shape == y.shape
            self._notify(y, self.observer.norm, block, site, module, x, y, call)

        self._capture(module, begin, end)

    def _hook_split_norm(self, block: int | None, site: Site, module: SplitNorm) -> None:
        """Join the special tokens, which come first, and the patches that a model norms one after the other."""
        parts: list[tuple[Any, Any]] = []

        def after(_module: nn.Module, args: Any, output: Any) -> None:
            parts.append((_first_tensor(args), _first_tensor(output)))
            if len(parts) == 2:
                inputs, outputs = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
                parts.clear()
                y = self._check_tokens(block, site, outputs)
                self._notify(y, self.observer.norm, block, site, module, inputs, y, None)

        for norm in dict.fromkeys((module.cls, module.patch)):
            self._hook(norm.register_forward_hook(after))

    def _hook(self, handle: RemovableHandle) -> None:
        self._stack.callback(handle.remove)

    def _hook_attention(self, key: Key, layout: TokenLayout, taps: BlockTaps, receive: Callable[..., None]) -> None:
        """Capture the attention inside a module, and pass call, input and output on."""
        assert taps.attention is not None
        self.expected.add(key)

        def begin(x: Tensor | None) -> AttentionCapture:
            images = 1 if x is None else x.shape[taps.sequence_first]
            return AttentionCapture(images, layout.tokens, taps.parallel, taps.queries, layout.attention_bias)

        def end(call: AttentionCall | None, x: Tensor, y: Tensor) -> None:
            if call is not None:
                self._mark_seen(key)
                self._notify(x, receive, call, x, y)

        self._capture(taps.attention, begin, end)

    def _hook_pooling(self, pooling: Pooling, pooled: Callable[[PooledTokens], None]) -> None:
        layout = self.layout
        if pooling.patches_only:
            layout = TokenLayout(layout.grid, (), patch_size=layout.patch_size)

        def receive(call: AttentionCall, x_BTD: Tensor, y: Tensor) -> None:
            pooled(PooledTokens(layout, x_BTD, y.reshape(len(y), -1, y.shape[-1]), call))

        taps = BlockTaps({}, pooling.module, queries=pooling.latents)
        self._hook_attention((None, str(Site.POOL)), layout, taps, receive)

    def _capture(
        self,
        module: nn.Module,
        begin: Callable[[Tensor | None], AttentionCapture | NormCapture],
        end: Callable[[Any, Tensor, Tensor], None],
    ) -> None:
        """Capture what kernels compute inside a module, and pass it on with the module's input and output."""
        active: list[AttentionCapture | NormCapture] = []

        def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
            capture = begin(_first_tensor((args, kwargs)))
            capture.__enter__()
            for captures in (active, self._captures):
                captures.append(capture)

        def after(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if not active:  # the module never began
                return
            capture = active.pop()
            self._captures.remove(capture)
            capture.__exit__(None, None, None)
            x, y = _first_tensor((args, kwargs)), _first_tensor(output)
            if x is not None and y is not None:  # the module raised otherwise
                end(capture.call, x, y)

        self._hook(module.register_forward_pre_hook(before, with_kwargs=True))
        # always_call: the capture must also end when the module raises.
        self._hook(module.register_forward_hook(after, with_kwargs=True, always_call=True))

    def _check_tokens(self, block: int | None, site: Site, x: Tensor | None, sequence_first: bool = False) -> Tensor:
        if x is None or x.dim() != 3:
            shape = "no tensor" if x is None else f"a tensor of shape {tuple(x.shape)}"
            raise IncompleteRecording(
                f"{_key_text((block, site))}: expected tokens of shape (images, tokens, channels), got {shape}"
            )
        if sequence_first:
            x = x.transpose(0, 1)
        (self.layout if block is None else self._layouts[block]).check(x.shape[1])
        self._mark_seen((block, site))
        return x

    def _mark_seen(self, key: Key) -> None:
        if key in self._seen:
            raise IncompleteRecording(
                f"{_key_text(key)} was seen twice in one forward pass: its module is shared or called twice; the "
                "family must name another one"
            )
        self._seen.add(key)

    def _notify(self, x: Tensor, method: Callable[..., None], *arguments: Any) -> None:
        """Call the observer without gradients and outside autocast, which would round its sums to half precision."""
        # Entering both contexts only if needed: 200 times a pass, they cost about 1 % of a ViT-S.
        if not torch.is_grad_enabled() and not torch.is_autocast_enabled(x.device.type):
            method(*arguments)
            return
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            method(*arguments)


def _key_text(key: Key) -> str:
    return str(key[1]) if key[0] is None else f"block {key[0]} {key[1]}"


def _missing_text(missing: set[Key], model: nn.Module) -> str:
    names = [_key_text(key) for key in sorted(missing, key=lambda key: (key[0] is None, key[0] or 0, key[1]))]
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return (
        f"the forward pass of {type(model).__qualname__} did not reach {len(names)} expected sites: {shown}. "
        "Forward hooks do not fire inside a compiled model (torch.compile, torch.jit) or on the fast path of "
        "nn.TransformerEncoder, and attention that runs neither a fused kernel nor softmax(QKᵀ) (flex_attention, "
        "xFormers) is not seen. "
        "Pass the plain eager module, or a Family that names modules that do run."
    )
