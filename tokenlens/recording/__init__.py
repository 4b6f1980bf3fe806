"""Forward hooks on an unmodified model, and the activations that they see."""

from tokenlens.recording.attention import AttentionCall
from tokenlens.recording.recorder import IncompleteRecording, Observer, Recorder, evaluating
from tokenlens.recording.recording import Recording

__all__ = [
    "AttentionCall",
    "IncompleteRecording",
    "Observer",
    "Recorder",
    "Recording",
    "evaluating",
]
