import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from core.config import (
    METHODS,
    BottleneckConfig,
    DataConfig,
    LoraConfig,
    ModelConfig,
    PrefixConfig,
    RunConfig,
    TrainingConfig,
    dump_config,
    load_config,
    parse_config,
    with_overrides,
)
from core.errors import ConfigError

FULL = RunConfig(
    model=ModelConfig(path="starter"), data=DataConfig(train=("/a.jsonl", "/b.jsonl"), validation_fraction=0.1),
    adapter=LoraConfig(rank=16, alpha=32, target_modules=("q_proj", "model.layers.0.mlp.up_proj"), last_layer=3),
    training=TrainingConfig(learning_rate=3e-4, device="cuda:1", dtype="bf16", epochs=0.5))


def test_the_defaults_that_scripts_rely_on() -> None:
    config = RunConfig()
    assert (config.adapter.method, config.adapter.rank, config.adapter.alpha, config.adapter.dropout) == (
        "lora", 8, 16.0, 0.0)
    assert (config.adapter.target_modules, config.adapter.save_dtype) == ("all-linear", "fp32")
    assert (config.training.learning_rate, config.training.schedule, config.training.warmup_steps) == (
        2e-4, "cosine", 10)
    assert (config.training.batch_size, config.training.epochs, config.training.seed) == (8, 3.0, 0)


@pytest.mark.parametrize("config", [RunConfig(), FULL], ids=["defaults", "full"])
def test_a_run_file_is_read_back_equal(tmp_path: Path, config: RunConfig) -> None:
    path = tmp_path / "run.toml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config
    assert dump_config(load_config(path)) == dump_config(config)


@given(rank=st.integers(1, 1024), alpha=st.floats(1e-6, 4096), rate=st.floats(1e-12, 1), path=st.text(max_size=30),
       last=st.none() | st.integers(0, 10000))
@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_any_values_survive_toml(rank: int, alpha: float, rate: float, path: str, last: int | None) -> None:
    config = RunConfig(model=ModelConfig(path=path.replace("\r", "")), training=TrainingConfig(learning_rate=rate),
                       adapter=LoraConfig(rank=rank, alpha=alpha, last_layer=last))
    assert parse_config(tomllib.loads(dump_config(config))) == config


def test_relative_paths_are_taken_from_the_run_file(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    path = tmp_path / "run.toml"
    path.write_text('[model]\npath = "model"\n[data]\ntrain = "rows.jsonl"\n')
    config = load_config(path)
    assert config.model.path == str((tmp_path / "model").resolve())
    assert config.data.train == (str(tmp_path.resolve() / "rows.jsonl"),)
    path.write_text('[model]\npath = "starter"\n')
    assert load_config(path).model.path == "starter"


@pytest.mark.parametrize(("override", "section", "field", "value"), [
    ("adapter.rank=16", "adapter", "rank", 16), ("adapter.alpha = 8", "adapter", "alpha", 8.0),
    ("adapter.target_modules=q-v", "adapter", "target_modules", "q-v"),
    ('adapter.target_modules=["q_proj", "v_proj"]', "adapter", "target_modules", ("q_proj", "v_proj")),
    (r"adapter.target_modules=.*\.(q|v)_proj", "adapter", "target_modules", r".*\.(q|v)_proj"),
    ("training.device=cuda:0", "training", "device", "cuda:0"), ("training.learning_rate=1e-3", "training",
                                                                "learning_rate", 1e-3),
    ("training.schedule=linear", "training", "schedule", "linear"), ("training.dtype=float32", "training", "dtype",
                                                                    "fp32"),
    ('data.train=["/a.jsonl"]', "data", "train", ("/a.jsonl",)), ("data.train=/a=b.jsonl", "data", "train",
                                                                 ("/a=b.jsonl",)),
    ("model.path=C:\\models\\new", "model", "path", "C:\\models\\new"),
])
def test_overrides(override: str, section: str, field: str, value: Any) -> None:
    config = with_overrides(RunConfig(), [override])
    assert getattr(getattr(config, section), field) == value
    assert len(_differences(config, RunConfig())) == 1


def test_overrides_keep_the_rest_and_the_last_one_wins() -> None:
    config = with_overrides(FULL, ["adapter.rank=4", "adapter.rank=5"])
    assert config.adapter.rank == 5
    assert _differences(config, FULL) == ["adapter.rank"]
    assert with_overrides(FULL, []) == FULL


@pytest.mark.parametrize("override", [
    "rank=3", "adapter.rank", "adapter.rank=", "adapter.rank=0", "adapter.rank=1.5", "adapter.rank=many",
    "adapter.ranc=3", "nonsense.rank=3", "adapter.target_modules=[]", "adapter.target_modules=(",
    "training.device=gpu", "training.learning_rate=nan", "training.learning_rate=inf", "training.seed=-1",
    "adapter={}", "=", "", "."])
def test_a_wrong_override_is_refused_in_words(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_overrides(RunConfig(), [override])
    assert "Traceback" not in caught.value.message


def test_every_wrong_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[adapter]\nrank = 0\nranc = 3\n[training]\nlearning_rate = "fast"\n[more]\n')
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    for name in (str(path), "adapter.rank:", "adapter.ranc:", "training.learning_rate:", "more:"):
        assert name in caught.value.message


@pytest.mark.parametrize("content", [b"rank = [", b"\xff\xfe", b"[adapter\n", b"a = 1\na = 2\n", b"adapter = 3"])
def test_a_damaged_run_file_is_refused_in_words(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.toml"):
        load_config(path)


def test_a_missing_run_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(tmp_path)


def test_every_field_says_what_it_is() -> None:
    config = RunConfig(prefix=PrefixConfig(), bottleneck=BottleneckConfig())
    sections = [type(getattr(config, name)) for name in RunConfig.model_fields]
    for model in [*sections, *METHODS.values()]:
        assert issubclass(model, BaseModel)
        for name, field in model.model_fields.items():
            assert field.title, name
            assert field.description, name
            extra = field.json_schema_extra
            assert isinstance(extra, dict)
            assert extra["group"], name


def _differences(a: RunConfig, b: RunConfig) -> list[str]:
    from core.runs.history import config_difference
    return [path for path, _, _ in config_difference(a, b)]


@pytest.mark.parametrize(("override", "words"), [
    ("training.device=gpu", "it must be auto, all, cpu, mps, or cuda:0 and so on"),
    ("adapter.alpha=nan", "it must be a finite number"),
    ("adapter.rnk=3", r"adapter.rnk: this name is not known; did you mean rank\?"),
    ("adapter.zebra=3", "adapter.zebra: this name is not known$"),
    ("prefix.lenght=3", r"did you mean length\?"), ("bottleneck.sizes=3", r"did you mean size\?"),
    ("trainin.epochs=1", r"there is no table trainin; did you mean training\?"),
    ("zebra.epochs=1", r"there is no table zebra\.$"),
])
def test_wrong_values_are_told_without_patterns(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        with_overrides(RunConfig(), [override])


def test_the_optional_tables_are_there_only_where_they_are_named() -> None:
    assert RunConfig().prefix is None
    assert "[prefix]" not in dump_config(RunConfig())
    assert parse_config({"prefix": {}}).prefix == PrefixConfig()
    config = with_overrides(RunConfig(), ["prefix.length=7", "bottleneck.size=3", "adapter.method=none"])
    assert config.prefix == PrefixConfig(length=7)
    assert config.bottleneck == BottleneckConfig(size=3)
    assert config.trained == ("prefix", "bottleneck")
    assert parse_config(tomllib.loads(dump_config(config))) == config
    with pytest.raises(ConfigError, match=r"prefix\.length: it must be at least 1"):
        with_overrides(RunConfig(), ["prefix.length=0"])


def test_another_method_keeps_what_was_chosen_and_not_the_defaults_of_the_old_one() -> None:
    chosen = with_overrides(RunConfig(), ["adapter.rank=16"])
    dora = with_overrides(chosen, ["adapter.method=dora"])
    assert (dora.adapter.method, dora.adapter.rank) == ("dora", 16)
    full = with_overrides(chosen, ["adapter.method=full"])
    assert full.adapter.target_modules == "all"
    attention = with_overrides(chosen, ["adapter.target_modules=attention", "adapter.method=full"])
    assert attention.adapter.target_modules == "attention"
