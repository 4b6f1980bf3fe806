"""Run a model under a Recorder and keep all its activations."""

from torch import Tensor, nn

from tokenlens.families.base import Family, find_family
from tokenlens.recording.attention import AttentionCall
from tokenlens.recording.recorder import Recorder, evaluating


class Witness:
    """An observer that keeps everything."""

    def __init__(self) -> None:
        self.sites: dict[tuple[int | None, str], Tensor] = {}
        self.norms: dict[tuple[int | None, str], tuple[nn.Module, Tensor, Tensor]] = {}
        self.calls: dict[int, AttentionCall] = {}

    def tokens(self, block, site, x):
        self.sites[block, str(site)] = x.clone()

    def norm(self, block, site, module, x, y, call):
        self.sites[block, str(site)] = y.clone()
        self.norms[block, str(site)] = (module, x.clone(), y.clone())

    def attention(self, block, call):
        self.calls[block] = call


def watch(model: nn.Module, x: Tensor, family: Family | None = None) -> tuple[Witness, object]:
    family = family or find_family(model)
    witness = Witness()
    with evaluating(model), Recorder(model, family, family.layout(model, tuple(x.shape[-2:])), witness) as recorder:
        return witness, recorder.run(x)


def tensors(output: object) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    return [x for value in values if value is not None for x in tensors(value)]


def hooks(model: nn.Module) -> int:
    """Count the hooks of any kind in a model."""
    return sum(
        len(value) for module in model.modules() for name, value in vars(module).items() if name.endswith("_hooks")
    )
