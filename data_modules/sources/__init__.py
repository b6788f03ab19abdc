"""Where records come from: one class for each layout."""

from data_modules.sources.candidates import CandidatesSource
from data_modules.sources.conversations import ConversationsSource
from data_modules.sources.irds import IrDatasetsSource
from data_modules.sources.messages import Conversation, MessagesSource
from data_modules.sources.mixed import MixedSource
from data_modules.sources.own import JsonlSource
from data_modules.sources.practice import JudgedSource, PointingSource
from data_modules.sources.preferences import PairsSource, PreferencePair
from data_modules.sources.rank_gpt import RankGPTSource
from data_modules.sources.rank_llm import RankLLMSource
from data_modules.sources.searched import SearchedSource
from data_modules.sources.shards import ShardsSource
from data_modules.sources.teacher_windows import TeacherWindowsSource
from data_modules.sources.trec_run import TrecSource

__all__ = [
    "CandidatesSource",
    "Conversation",
    "ConversationsSource",
    "IrDatasetsSource",
    "JsonlSource",
    "JudgedSource",
    "MessagesSource",
    "MixedSource",
    "PairsSource",
    "PointingSource",
    "PreferencePair",
    "RankGPTSource",
    "RankLLMSource",
    "SearchedSource",
    "ShardsSource",
    "TeacherWindowsSource",
    "TrecSource",
]
