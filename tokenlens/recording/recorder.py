"""Forward hooks on an unmodified model, which pass the activations at every site to an observer."""

# Shapes: B images, T tokens, D channels.

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tokenlens.families import Family
from tokenlens.recording.attention import AttentionCall
from tokenlens.recording.capture import AttentionCapture, NormCall, NormCapture
from tokenlens.tokens import HEAD_SITES, NORM_SITES, Key, Site, TokenLayout

_Capture = TypeVar("_Capture", AttentionCapture, NormCapture)


class IncompleteRecording(ValueError):
    """A forward pass did not reach every expected site exactly once."""


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
    if isinstance(value, tuple | list):
        if value and isinstance(value[0], Tensor):  # nearly always
            return value[0]
        return next((found for item in value if (found := _first_tensor(item)) is not None), None)
    if isinstance(value, Mapping):
        return next((found for item in value.values() if (found := _first_tensor(item)) is not None), None)
    return None


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
    ) -> None:
        self.model = model
        self.family = family
        self.layout = layout
        self.observer = observer
        self.sites = {Site(site) for site in (Site if sites is None else sites)}
        self._modules = list(family.blocks(model))
        if not self._modules:
            raise LookupError(f"the family found no transformer block in a {type(model).__qualname__}")
        count = len(self._modules)
        self.blocks = sorted(set(range(count) if blocks is None else (b + count if b < 0 else b for b in blocks)))
        outside = [block for block in self.blocks if not 0 <= block < count]
        if outside:
            raise LookupError(f"the model has blocks 0 to {count - 1}, got {outside}")
        self.expected: set[Key] = set()
        self._seen: set[Key] = set()
        self._handles: list[RemovableHandle] = []
        self._captures: list[AttentionCapture | NormCapture] = []

    def __enter__(self) -> Recorder:
        assert not self._handles, "the Recorder is active already"
        try:
            for block in self.blocks:
                self._hook_block(block)
            norm = self.family.final_norm(self.model) if Site.FINAL_NORM in self.sites else None
            if norm is not None:
                self._hook_norm(None, Site.FINAL_NORM, norm)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        while self._captures:
            self._captures.pop().__exit__(None, None, None)

    def run(self, images: Tensor) -> Any:
        """Run the model and return its output, after checking that every expected site was seen."""
        self._seen.clear()
        output = self.family.forward(self.model, images)
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
                self._hook_norm(block, site, tap.module)
            else:
                self._hook_tokens(block, site, tap.module, tap.side)
        if self.sites & {*HEAD_SITES}:
            self._hook_attention(block, taps.attention)

    def _hook_tokens(self, block: int, site: Site, module: nn.Module, side: str) -> None:
        self.expected.add((block, site))

        def observe(value: Any) -> None:
            x = self._check_tokens(block, site, _first_tensor(value))
            self._notify(x, self.observer.tokens, block, site, x)

        def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
            observe((args, kwargs))

        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            observe(output)

        if side == "input":
            self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        else:
            self._handles.append(module.register_forward_hook(after))

    def _hook_norm(self, block: int | None, site: Site, module: nn.Module) -> None:
        self.expected.add((block, site))

        def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
            x = self._check_tokens(block, site, _first_tensor((args, kwargs)))
            self._begin_capture(NormCapture(x))

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            capture = self._end_capture(NormCapture)
            x, y = _first_tensor((args, kwargs)), _first_tensor(output)
            if capture is None or x is None or y is None:  # the norm raised
                return
            assert x.shape == y.shape
            self._notify(y, self.observer.norm, block, site, module, x, y, capture.call)

        self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        # always_call: the capture must also end when the module raises.
        self._handles.append(module.register_forward_hook(after, with_kwargs=True, always_call=True))

    def _hook_attention(self, block: int, module: nn.Module) -> None:
        self.expected.add((block, "attention"))

        def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
            x_BTD = _first_tensor((args, kwargs))
            self._begin_capture(AttentionCapture(1 if x_BTD is None else len(x_BTD), self.layout.tokens))

        def after(_module: nn.Module, _args: Any, _output: Any) -> None:
            capture = self._end_capture(AttentionCapture)
            if capture is not None and capture.call is not None:
                self._mark_seen((block, "attention"))
                self._notify(capture.call.q_BHTd, self.observer.attention, block, capture.call)

        self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        # always_call: the capture must also end when the attention module raises.
        self._handles.append(module.register_forward_hook(after, always_call=True))

    def _begin_capture(self, capture: AttentionCapture | NormCapture) -> None:
        capture.__enter__()
        self._captures.append(capture)

    def _end_capture(self, kind: type[_Capture]) -> _Capture | None:
        """End the innermost capture and return it; None if it is of another kind, because its module never began."""
        capture = self._captures[-1] if self._captures else None
        if not isinstance(capture, kind):
            return None
        self._captures.pop().__exit__(None, None, None)
        return capture

    def _check_tokens(self, block: int | None, site: Site, x: Tensor | None) -> Tensor:
        where = site if block is None else f"block {block}, {site}"
        if x is None or x.dim() != 3:
            shape = "no tensor" if x is None else f"a tensor of shape {tuple(x.shape)}"
            raise IncompleteRecording(f"{where}: expected tokens of shape (images, tokens, channels), got {shape}")
        self.layout.check(x.shape[1])
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
        "nn.TransformerEncoder, and attention that runs neither a fused kernel nor softmax(QKᵀ) is not seen. "
        "Pass the plain eager module, or a Family that names modules that do run."
    )
