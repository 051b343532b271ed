"""The one configuration of a run. A hyper-parameter is declared here and nowhere else.

From these models come the form, the CLI's `--set`, run.toml, the saved metadata and the
comparison of runs. Field metadata beyond pydantic's own lives in `json_schema_extra`:
`group` (heading in the form), `unit`, `more` (folded away at first).
"""

from core.config.adapter import (
    METHODS,
    TARGET_PRESETS,
    AdaLoraConfig,
    AdapterConfig,
    DoraConfig,
    FullConfig,
    LoraConfig,
    LowRankConfig,
    NoAdapterConfig,
    PatternedConfig,
    QLoraConfig,
    StartableConfig,
    TargetConfig,
    TargetedConfig,
    with_method,
)
from core.config.extra import BottleneckConfig, PrefixConfig
from core.config.run import (
    STARTER,
    RunConfig,
    absolute_paths,
    dump_config,
    field_errors,
    load_config,
    parse_config,
    with_overrides,
)
from core.config.section import Section, option
from core.config.training import DataConfig, ModelConfig, TrainingConfig, missing_device

__all__ = [
    "METHODS", "STARTER", "TARGET_PRESETS", "AdaLoraConfig", "AdapterConfig", "BottleneckConfig", "DataConfig",
    "DoraConfig", "FullConfig", "LoraConfig", "LowRankConfig", "ModelConfig", "NoAdapterConfig",
    "PatternedConfig", "PrefixConfig", "QLoraConfig", "RunConfig", "Section", "StartableConfig", "TargetConfig",
    "TargetedConfig", "TrainingConfig", "absolute_paths", "dump_config", "field_errors", "load_config",
    "missing_device", "option", "parse_config", "with_method", "with_overrides",
]
