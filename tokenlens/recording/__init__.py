"""Forward hooks on an unmodified model, and recordings of its activations."""

from tokenlens.recording.attention import AttentionCall
from tokenlens.recording.capture import NormCall
from tokenlens.recording.recorder import IncompleteRecording, Observer, Recorder, evaluating
from tokenlens.recording.recording import Recording, RecordingObserver

__all__ = [
    "AttentionCall",
    "IncompleteRecording",
    "NormCall",
    "Observer",
    "Recorder",
    "Recording",
    "RecordingObserver",
    "evaluating",
]
