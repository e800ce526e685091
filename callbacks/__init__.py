"""What happens during a run and Composer lacks, and the table from a YAML's names to classes."""

from composer.callbacks import LRMonitor, MemoryMonitor, RuntimeEstimator, SpeedMonitor

from callbacks.checkpoint_writer import CheckpointError, CheckpointWriter
from callbacks.cost_monitor import CostMonitor
from callbacks.data_monitor import DataMonitor
from callbacks.language_metrics import LanguageMetrics
from callbacks.norm_monitor import NormMonitor
from callbacks.number_guard import NumberGuard
from callbacks.parity_gate import ParityError, ParityGate
from callbacks.preemption import Preemption
from callbacks.rank_sums import RankSums
from callbacks.restore_rng import RestoreRNG
from callbacks.sample_fingerprint import SampleFingerprint
from callbacks.spike_guard import Rewind, SpikeGuard
from callbacks.stall_watch import StallWatch
from callbacks.texts import Texts
from recipes.training.console import Console
from recipes.training.metrics_file import MetricsFile

# Names of `callbacks:` in a YAML whose arguments go to the constructor as they are.
CALLBACKS = {
    "speed_monitor": SpeedMonitor,
    "lr_monitor": LRMonitor,
    "memory_monitor": MemoryMonitor,
    "runtime_estimator": RuntimeEstimator,
}

__all__ = [
    "CALLBACKS",
    "CheckpointError",
    "CheckpointWriter",
    "Console",
    "CostMonitor",
    "DataMonitor",
    "LanguageMetrics",
    "MetricsFile",
    "NormMonitor",
    "NumberGuard",
    "ParityError",
    "ParityGate",
    "Preemption",
    "RankSums",
    "RestoreRNG",
    "Rewind",
    "SampleFingerprint",
    "SpikeGuard",
    "StallWatch",
    "Texts",
]
