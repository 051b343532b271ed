"""Settings that go on from an adapter, and what keeps a run from starting from one."""

import json
from pathlib import Path

import pytest

from core.config import AdapterConfig, DoraConfig, LoraConfig, ModelConfig, NoAdapterConfig, RunConfig, load_config
from core.models.inspect import read_card
from core.run_problems import problems
from core.start import adapter_folder, settings_from, start_tables
from core.start_problem import start_problem

CONFIG = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.1,
          "bias": "none", "use_rslora": True, "rank_pattern": {"q_proj": 4}}


def folder(path: Path, **changes: object) -> Path:
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text(json.dumps({**CONFIG, **changes}))
    return path


def told(adapter: AdapterConfig) -> str:
    """The field at which it is told that the run can not start; "" where it can."""
    found = start_problem(RunConfig(adapter=adapter))
    return found[0] if found else ""


def test_settings_are_those_of_the_file() -> None:
    values = settings_from(CONFIG, ["model.layers.0.self_attn.q_proj"])
    adapter = LoraConfig(**{key: value for key, value in values.items() if key != "method"})
    assert (adapter.rank, adapter.alpha, adapter.dropout, adapter.rslora) == (8, 16.0, 0.1, True)
    assert adapter.target_modules == ("q_proj", "v_proj")
    assert adapter.rank_pattern == {"q_proj": 4}
    for changes in ({"target_modules": "all-linear"}, {"layers_to_transform": [0]}):
        assert settings_from({**CONFIG, **changes}, ["b", "a"])["target_modules"] == ["a", "b"]


@pytest.mark.parametrize("changes", [{"peft_type": "IA3"}, {"peft_type": "ADALORA"},  # without init_r
                                     {"trainable_token_indices": [3]}, {"r": 0}, {"lora_alpha": 1e9}])
def test_what_can_not_be_gone_on_from(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        settings_from({**CONFIG, **changes}, ["a"])


@pytest.mark.parametrize(("fields", "field"), [
    ({}, None), ({"rank": 4}, "rank"), ({"alpha": 8.0}, "alpha"), ({"rslora": False}, "rslora"),
    ({"init": "gaussian"}, "init")])
def test_other_settings_are_a_problem_at_their_field(tmp_path: Path, fields: dict[str, object],
                                                     field: str | None) -> None:
    start = str(folder(tmp_path / "a"))
    adapter = LoraConfig(**{"rank": 8, "alpha": 16.0, "rslora": True, "start_from": start, **fields})  # type: ignore[arg-type]
    assert told(adapter) == (f"adapter.{field}" if field else "")
    named = [problem.field for problem in problems(RunConfig(model=ModelConfig(path="m"), adapter=adapter))]
    assert (f"adapter.{field}" in named) == (field is not None)


def test_another_method_or_nothing_there_is_a_problem(tmp_path: Path) -> None:
    start = str(folder(tmp_path / "a"))
    assert told(DoraConfig(rank=8, rslora=True, start_from=start)) == "adapter.method"
    assert told(NoAdapterConfig(start_from=start)) == "adapter.method"
    assert told(LoraConfig(start_from=str(tmp_path / "none"))) == "adapter.start_from"
    (tmp_path / "a" / "adapter_config.json").write_text("{")
    assert told(LoraConfig(start_from=start)) == "adapter.start_from"


@pytest.mark.parametrize("changes", [{"r": None}, {"lora_alpha": "x"}, {"rank_pattern": ["q_proj"]},
                                     {"alpha_pattern": {"q_proj": None}}, {"target_modules": 3},
                                     {"modules_to_save": "lm_head"}, {"trainable_token_indices": {"embed": 3}},
                                     {"trainable_token_indices": ["a"]}, {"target_parameters": 3}, {"r": 10**400}])
def test_a_damaged_field_is_named(tmp_path: Path, changes: dict[str, object]) -> None:
    found = start_problem(RunConfig(adapter=LoraConfig(start_from=str(folder(tmp_path / "a", **changes)))))
    assert found is not None
    assert found[0] == "adapter.start_from"
    assert next(iter(changes)) in found[1]


def test_the_model_tells_of_other_layers_ranks_and_bases(tmp_path: Path, tiny_model: Path) -> None:
    start, card = folder(tmp_path / "a"), read_card(tiny_model)
    fields = {"rank": 8, "alpha": 16.0, "rslora": True, "start_from": str(start), "rank_pattern": {"q_proj": 4},
              "target_modules": ("q_proj", "v_proj")}
    for changes, field in (({}, None), ({"target_modules": "q-v"}, None), ({"rank_pattern": {}}, "rank_pattern"),
                           ({"rank_pattern": {r".*\.q_proj": 4}}, None),
                           ({"target_modules": ("v_proj",)}, "target_modules"),
                           ({"alpha_pattern": {"v_proj": 3.0}}, "alpha_pattern"),
                           ({"last_layer": 0}, "target_modules")):
        config = RunConfig(model=ModelConfig(path="m"), adapter=LoraConfig(**{**fields, **changes}))  # type: ignore[arg-type]
        named = [each.field for each in problems(config, card) if each.field.startswith("adapter.")]
        assert named == ([f"adapter.{field}"] if field else []), changes
    (start / "workbench.json").write_text(json.dumps({"base_fingerprint": "of another"}))
    config = RunConfig(model=ModelConfig(path="m"), adapter=LoraConfig(**fields))  # type: ignore[arg-type]
    assert "adapter.start_from" in [each.field for each in problems(config, card)]


def test_the_home_folder_is_known_and_a_resumed_run_needs_no_start(tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder(tmp_path / "a")
    adapter = LoraConfig(rank=8, rslora=True, start_from="~/a")
    assert not told(adapter)
    config = RunConfig(model=ModelConfig(path="m"), adapter=adapter.model_copy(update={"start_from": "~/gone"}))
    assert "adapter.start_from" in [each.field for each in problems(config)]
    assert "adapter.start_from" not in [each.field for each in problems(config, resumed=True)]


def test_a_whole_model_is_no_start(tmp_path: Path) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "run.toml").write_text("")
    (tmp_path / "run" / "model" / "config.json").write_text("{}")
    found = start_problem(RunConfig(adapter=LoraConfig(start_from=str(tmp_path / "run"))))
    assert found is not None
    assert found[0] == "adapter.start_from" and "chosen as the base model" in found[1]


@pytest.mark.parametrize(("changes", "field"), [
    ({}, ""), ({"prefix": {"length": 8}}, "prefix.length"), ({"prefix": None}, "adapter.start_from"),
    ({"prefix": {"length": 6, "projection": True}}, "prefix.projection"),
    ({"bottleneck": {"size": 8, "activation": "relu"}}, "bottleneck.activation"),
    ({"bottleneck": {"size": 8, "first_layer": 1}}, "bottleneck.first_layer"),
    ({"adapter": {"method": "lora"}}, "adapter.method")])
def test_what_stands_beside_must_be_alike(tmp_path: Path, changes: dict[str, object], field: str) -> None:
    for part, name, values in (
            ("prefix", "adapter_config.json", {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 6}),
            ("bottleneck", "bottleneck_config.json", {"size": 8, "activation": "gelu", "placement": "both",
                                                      "first_layer": 0, "last_layer": None})):
        (tmp_path / part).mkdir()
        (tmp_path / part / name).write_text(json.dumps(values))
    tables = start_tables(tmp_path, [])
    assert tables == {"adapter": {"method": "none"}, "prefix": {"length": 6},
                      "bottleneck": {"size": 8, "activation": "gelu", "placement": "both", "first_layer": 0}}
    values = tables | changes
    config = RunConfig.model_validate(values | {"adapter": {**values["adapter"], "start_from": str(tmp_path)}})
    found = start_problem(config)
    assert (found[0] if found else "") == field


@pytest.mark.parametrize("changes", [{"r": "x"}, {"r": [8]}, {"lora_alpha": 10**400}, {"init_r": 10**30},
                                     {"target_r": 0.5}])
def test_a_damaged_field_of_adalora_is_named(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        settings_from(ADALORA | changes, ["q_proj"])


def test_what_other_programs_leave_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1")
    for config, words in (({"trainable_token_indices": [3]}, "tokenizer can not be read"),
                          ({"init_lora_weights": "pissa"}, "init_lora_weights"), ({"lora_bias": True}, "lora_bias"),
                          ({"lora_alpha": None}, "lora_alpha")):
        (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG | config))
        found = start_problem(RunConfig(adapter=LoraConfig(start_from=str(tmp_path))))
        assert found is not None
        assert found[0] == "adapter.start_from" and words in found[1], config
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))  # where no token is trained, it is not looked at
    assert start_tables(tmp_path, [])["adapter"]["rank"] == 8
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": [1], "content": "a"}, 3]}))
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG | {"trainable_token_indices": [3]}))
    with pytest.raises(ValueError, match="which tokens"):
        start_tables(tmp_path, [])


def test_both_ends_of_a_tied_model_go_on_as_they_were(tmp_path: Path) -> None:
    both = {"target_modules": ["embed_tokens", "lm_head"], "use_rslora": False, "rank_pattern": {}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG | both))
    adapter = LoraConfig(rank=8, alpha=16.0, start_from=str(tmp_path), target_modules=("embed_tokens", "lm_head"))
    assert not told(adapter)
    assert told(adapter.model_copy(update={"ensure_weight_tying": True})) == "adapter.ensure_weight_tying"


ADALORA = {"peft_type": "ADALORA", "init_r": 6, "target_r": 4, "lora_alpha": 16, "target_modules": ["q_proj"],
           "tinit": 10, "tfinal": 30, "total_step": 100, "deltaT": 5, "beta1": 0.8, "beta2": 0.9,
           "orth_reg_weight": 0.25, "bias": "all", "modules_to_save": ["lm_head"]}


@pytest.mark.parametrize(("fields", "field"), [
    ({}, ""), ({"rank": 2}, ""), ({"initial_rank": 8}, "initial_rank"), ({"alpha": 8.0}, "alpha")])
def test_adalora_goes_on_with_its_first_ranks(tmp_path: Path, fields: dict[str, object], field: str) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(ADALORA))
    values = settings_from(ADALORA, ["q_proj"])
    assert (values["rank"], values["initial_rank"], values["budget_start"], values["budget_end"]) == (4, 6, 0.1, 0.7)
    adapter = RunConfig.model_validate({"adapter": {**values, "start_from": str(tmp_path), **fields}}).adapter
    assert told(adapter) == (f"adapter.{field}" if field else "")


def test_a_run_stands_for_its_adapter_and_a_relative_path_for_the_run_file_s_folder(tmp_path: Path) -> None:
    folder(tmp_path / "run" / "adapter")
    assert adapter_folder(tmp_path / "run") == tmp_path / "run" / "adapter"
    (tmp_path / "next.toml").write_text('[adapter]\nstart_from = "run"\n')
    adapter = load_config(tmp_path / "next.toml").adapter
    assert isinstance(adapter, LoraConfig)
    assert adapter.start_from == str((tmp_path / "run").resolve())
