"""Forward hooks on an unmodified model, and recordings of its activations."""

from tokenlens.recording.attention import AttentionCall
from tokenlens.recording.capture import NormCall
from tokenlens.recording.recorder import (
    IncompleteRecording,
    Observer,
    PooledTokens,
    Recorder,
    evaluating,
    resolve_blocks,
)
from tokenlens.recording.recording import Recording, RecordingObserver

__all__ = [
    "AttentionCall",
    "IncompleteRecording",
    "NormCall",
    "Observer",
    "PooledTokens",
    "Recorder",
    "Recording",
    "RecordingObserver",
    "evaluating",
    "resolve_blocks",
]
