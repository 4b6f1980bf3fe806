"""Forward hooks on an unmodified model, and recordings of its activations."""

from tokenlens.recording.attention import AttentionCall
from tokenlens.recording.recorder import IncompleteRecording, Observer, Recorder, evaluating
from tokenlens.recording.recording import Recording, RecordingObserver
from tokenlens.recording.reordering import ReorderingObserver

__all__ = [
    "AttentionCall",
    "IncompleteRecording",
    "Observer",
    "Recorder",
    "Recording",
    "RecordingObserver",
    "ReorderingObserver",
    "evaluating",
]
