"""Configs: what a user wrote is what runs, and what cannot run is explained by key and remedy."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from configs.load import ConfigError, dump_config, known_keys, load_config, parse_config
from configs.schema import Config

HERE = Path(__file__).parents[2] / "configs"
LEAST = {"data": {"train": "shards/train", "val": "shards/val"}}


def test_every_config_in_the_repository_is_valid():
    files = sorted(HERE.glob("*.yaml"))
    assert files
    for file in files:
        load_config(file)


def test_resolved_config_reads_back_as_itself(tmp_path):
    config = load_config(HERE / "demo.yaml", ["train.refine.lr=0.5", "data.val=some/shards"])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config
    assert config.train.refine.lr == 0.5
    assert config.data.val == "some/shards"


def test_a_long_value_with_blanks_stays_on_one_line():
    """Where passwords are looked for, and where a user looks."""
    uri = f"mysql://me:a password@{'host' * 30}/db of mine"
    assert f"uri: {uri}\n" in dump_config(parse_config({**LEAST, "tracking": {"uri": uri}}, "here"))


@pytest.mark.parametrize("text, value", [("1e-3", 0.001), ("0.25", 0.25), ("2E-2", 0.02)])
def test_set_reads_numbers_as_users_write_them(text, value):
    assert load_config(HERE / "demo.yaml", [f"train.baseline.lr={text}"]).train.baseline.lr == value


def test_set_replaces_a_whole_source_by_its_parts():
    config = load_config(HERE / "demo.yaml", ["data.train.images=photos", "data.train.annotations=a.json"])
    assert config.data.train.images == "photos"
    config = load_config(
        HERE / "demo.yaml", ["data.train=shards", "data.train.images=i", "data.train.annotations=a"]
    )
    assert config.data.train.images == "i"


@pytest.mark.parametrize(
    "tree, named",
    [
        ({"trian": {}}, "unknown key trian; did you mean train?"),
        ({"test": {"alhpa": 1}}, "unknown key test.alhpa; did you mean test.alpha?"),
        ({"train": {"refine": {"itres": 1}}}, "did you mean train.refine.iters?"),
        ({"test": {"alpha": "high"}}, "test.alpha"),
        ({"test": {"alpha": float("nan")}}, "test.alpha"),
        ({"train": {"baseline": {"batch": 8, "accumulate": 3}}}, "batch=8 is not divisible by accumulate=3"),
        ({"refine": {"conv_res_act": "relu"}}, "never trains"),
        ({"model": {"backbone": "resnet34"}}, "model.backbone"),
        ({"deepspeed": {"stage": 3}}, "deepspeed.stage"),
        ({"data": {"train": {"images": "x"}, "val": "v"}}, "data.train.annotations is missing"),
        ({"data": {"train": "x"}}, "data.val is missing"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tree, named):
    with pytest.raises(ConfigError) as raised:
        parse_config({**LEAST, **tree}, "my.yaml")
    assert named in str(raised.value)
    assert str(raised.value).startswith("my.yaml: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [", "", "\x00"])
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path, content):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"bad\.yaml: "):
        load_config(path)


def test_an_absent_file_and_a_set_without_value_are_refused():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_config("nowhere.yaml")
    with pytest.raises(ConfigError, match="key=value"):
        load_config(HERE / "demo.yaml", ["train.refine.lr"])


def test_every_ablation_key_of_the_method_exists_with_its_default():
    keys = known_keys(Config)
    expected = {
        "sara.aligned": "source", "sara.sampling_ratio": 2, "sara.delta": 0.5, "sara.guidance": "mul",
        "refine.iou": 0.5, "refine.coder": (10.0, 10.0, 5.0, 5.0), "refine.resample": False,
        "refine.gt": "plain", "refine.detach_mask": False, "refine.init_gain": "none",
        "refine.freeze_base": False, "refine.fminus": "literal", "refine.conv_res_init": "zero",
        "refine.conv_res_act": "none", "refine.base_mask_on": "B", "refine.mask_pos_cap": 128,
        "refine.train_mask_label": "gt", "refine.use_sara": True, "test.alpha": 1.0, "test.cls": True,
        "test.reg": True, "test.order": "refine_all", "test.score": 0.05, "test.nms": 0.5,
        "test.topk": 100, "test.paste": "legacy", "test.cls_scores": "fused", "checkpoint_every": 500,
    }  # fmt: skip
    assert {key: keys[key] for key in expected} == expected
    refine = keys["train.refine"] if not isinstance(keys["train.refine"], BaseModel) else keys["train"].refine
    assert (refine.lr, refine.iters, refine.steps, refine.batch) == (0.002, 9000, (6000,), 16)
    assert (refine.warmup, refine.warmup_factor, refine.bias_lr, refine.bias_wd) == (500, 1 / 3, 2.0, 0.0)


def test_a_checkpoint_to_be_kept_must_be_one_that_is_written():
    data = {"data": {"train": "-", "val": "-"}}
    assert parse_config({**data, "checkpoint_every": 10, "keep_checkpoint_every": 30})
    with pytest.raises(ConfigError, match="keep_checkpoint_every=25 is no multiple of checkpoint_every=10"):
        parse_config({**data, "checkpoint_every": 10, "keep_checkpoint_every": 25})
