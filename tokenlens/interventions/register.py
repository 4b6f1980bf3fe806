"""Move what register neurons write to one extra token (a test-time register), in models without registers."""

# Shapes: B images, T tokens, H neurons of an MLP.

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import ClassVar

import torch
from torch import Tensor

from tokenlens.interventions._hooks import Sites
from tokenlens.interventions._targets import CONTROL
from tokenlens.interventions.base import Given, Replacement
from tokenlens.tokens import Site


class AddedRegister(Replacement):
    """A token of zeros, appended at the first block, that takes over the activations of the register neurons.

    Register neurons are the neurons of all MLPs up to the block with the largest mean activation at the high-norm
    patches of that block. In every one of them the extra token gets the largest activation over the patches, and the
    patches get zero. The token is taken off behind the last block. The control, ``high_norm_control``, does the same
    with the neurons of as many random patches.

    Reference: Jiang et al. 2025 (arXiv 2506.08010).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"neurons"})
    everywhere: ClassVar[bool] = True

    def check(self, sites: Sites, target: str, site: Site, block: int) -> None:
        """Raise LookupError unless high-norm patches are replaced at ``resid_post`` and the model takes a token."""
        if target not in ("high_norm", CONTROL) or site != Site.RESID_POST:
            raise LookupError(
                "a register takes over what makes patches high-norm at resid_post: use it with replace='high_norm' "
                f"and site='resid_post', got {target!r} at {site}"
            )
        sites.check_added_token()

    @contextmanager
    def applied(self, sites: Sites, site: Site, block: int, chosen_BT: Tensor, given: Given) -> Iterator[None]:
        """Append the token, and move the activations of the register neurons to it."""
        if not given.neurons:
            yield
            return
        patches = list(sites.layout.positions("patch"))
        with ExitStack() as hooks:
            hooks.enter_context(sites.added_token())
            for number, neurons in given.neurons.items():

                def move(hidden_BTH: Tensor, neurons: Tensor = neurons) -> Tensor:
                    chosen = neurons.to(hidden_BTH.device)
                    moved_BTH = hidden_BTH.clone()
                    of_neurons = hidden_BTH[:, patches][:, :, chosen]
                    moved_BTH[:, -1, chosen] = of_neurons.amax(1)
                    rows = torch.tensor(patches, device=hidden_BTH.device)
                    moved_BTH[:, rows[:, None], chosen] = 0
                    return moved_BTH

                hooks.enter_context(sites.at_hidden(number, move))
            yield
