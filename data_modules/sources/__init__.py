"""Where records come from: one class for each layout."""

from data_modules.sources.candidates import CandidatesSource
from data_modules.sources.conversations import ConversationsSource
from data_modules.sources.own import JsonlSource
from data_modules.sources.preferences import PairsSource, PreferencePair
from data_modules.sources.teacher_windows import TeacherWindowsSource

__all__ = [
    "CandidatesSource",
    "ConversationsSource",
    "JsonlSource",
    "PairsSource",
    "PreferencePair",
    "TeacherWindowsSource",
]
