"""Ranges of settings, and settings that do not go with each other."""

import pytest

from support.settings import problem, settings
from vitrail.config.commands import EvaluateConfig, PredictConfig
from vitrail.errors import ConfigError


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("model.drop_path_rate=-0.1", "model.drop_path_rate is -0.1; it must be from 0 to below 1"),
        ("model.drop_path_rate=1.1", "model.drop_path_rate is 1.1; it must be from 0 to below 1"),
        ("model.drop_rate=1", "model.drop_rate is 1.0; it must be from 0 to below 1"),
        ("model.drop_rate=-0.1", "model.drop_rate is -0.1; it must be from 0 to below 1"),
        ("data.workers=-1", "data.workers is -1; it must be from 0 to 1024"),
        ("data.val_fraction=0", "data.val_fraction is 0.0; it must be above 0 and below 1"),
        ("data.val_fraction=1", "data.val_fraction is 1.0; it must be above 0 and below 1"),
        ("data.name=null", "data.root is not set; give the folder with your images, or data.name=digits"),
        ("preprocess.crop=0", "preprocess.crop is 0.0; it must be above 0 and at most 1"),
        ("preprocess.crop=1.1", "preprocess.crop is 1.1; it must be above 0 and at most 1"),
        ("preprocess.std=[0.5, 0, 0.5]", "preprocess.std is (0.5, 0.0, 0.5); it must be positive"),
        (
            "preprocess.mean=[123.675, 116.28, 103.53]",
            "preprocess.mean is (123.675, 116.28, 103.53); it is for pixels from 0 to 1: divide mean and std by 255",
        ),
        (
            "preprocess.std=[58.395, 57.12, 57.375]",
            "preprocess.std is (58.395, 57.12, 57.375); it is for pixels from 0 to 1: divide mean and std by 255",
        ),
        (
            "preprocess.mean=[31000, 30000, 0]",
            "preprocess.mean is (31000.0, 30000.0, 0.0); it is for pixels from 0 to 1: divide mean and std by 65535",
        ),
        ("augment.hflip=2", "augment.hflip is 2.0; it must be from 0 to 1"),
        ("augment.erase_prob=-0.5", "augment.erase_prob is -0.5; it must be from 0 to 1"),
        ("augment.mixup=-1", "augment.mixup is -1.0; it must be at least 0"),
        ("augment.cutmix=-1", "augment.cutmix is -1.0; it must be at least 0"),
        ("augment.mix_prob=1.5", "augment.mix_prob is 1.5; it must be from 0 to 1"),
        ("augment.mix_switch_prob=-1", "augment.mix_switch_prob is -1.0; it must be from 0 to 1"),
        ("augment.mix_off_epoch=0", "augment.mix_off_epoch is 0; it must be at least 1"),
        ("augment.cutmix_minmax=[0.9, 0.2]", "augment.cutmix_minmax is (0.9, 0.2); it must rise within 0 to 1"),
        ("augment.cutmix_minmax=[0.2, 1.2]", "augment.cutmix_minmax is (0.2, 1.2); it must rise within 0 to 1"),
        ("augment.erase_count=0", "augment.erase_count is 0; it must be at least 1"),
        ("optim.layer_decay=1.1", "optim.layer_decay is 1.1; it must be at most 1"),
        ("augment.color_jitter=-0.4", "augment.color_jitter is -0.4; it must be at least 0"),
        ("augment.repeats=0", "augment.repeats is 0; it must be at least 1"),
        ("augment.label_smoothing=1", "augment.label_smoothing is 1.0; it must be from 0 to below 1"),
        ("augment.label_smoothing=-0.1", "augment.label_smoothing is -0.1; it must be from 0 to below 1"),
        ("augment.scale=[0, 1]", "augment.scale is (0.0, 1.0); it must rise within 0 to 1"),
        ("augment.scale=[0.9, 0.1]", "augment.scale is (0.9, 0.1); it must rise within 0 to 1"),
        ("augment.scale=[0.5, 2]", "augment.scale is (0.5, 2.0); it must rise within 0 to 1"),
        ("augment.ratio=[0, 1]", "augment.ratio is (0.0, 1.0); it must be positive and rise"),
        ("augment.ratio=[2, 1]", "augment.ratio is (2.0, 1.0); it must be positive and rise"),
        ("balance.logit_adjust=0", "balance.logit_adjust is 0.0; it must be above 0"),
        ("balance.effective_beta=1", "balance.effective_beta is 1.0; it must be from 0 to below 1"),
        ("balance.effective_beta=-0.1", "balance.effective_beta is -0.1; it must be from 0 to below 1"),
        ("optim.lr=0", "optim.lr is 0.0; it must be above 0"),
        ("optim.eps=0", "optim.eps is 0.0; it must be above 0"),
        ("optim.clip_norm=0", "optim.clip_norm is 0.0; it must be above 0"),
        ("optim.layer_decay=0", "optim.layer_decay is 0.0; it must be above 0"),
        ("optim.backbone_scale=0", "optim.backbone_scale is 0.0; it must be above 0"),
        ("optim.lr_base_batch=0", "optim.lr_base_batch is 0; it must be at least 1"),
        ("optim.weight_decay=-1", "optim.weight_decay is -1.0; it must be at least 0"),
        ("optim.momentum=1.5", "optim.momentum is 1.5; it must be from 0 to 1"),
        ("optim.betas=[0.9, 1]", "optim.betas are (0.9, 1.0); each must be from 0 to below 1"),
        ("optim.betas=[0.9, 0.9, 0.9]", "optim.betas are (0.9, 0.9, 0.9); adamw takes 2; null takes its own"),
        (
            "output.average_best=true",
            "output.average_best needs several best weights; set output.keep_best to 2 or more",
        ),
        ("freeze.epochs=0", "freeze.epochs is 0; it must be at least 1"),
        ("lora.rank=0", "lora.rank is 0; it must be at least 1"),
        ("lora.alpha=0", "lora.alpha is 0.0; it must be above 0"),
        ("lora.dropout=1", "lora.dropout is 1.0; it must be from 0 to below 1"),
        ("lora.targets=[]", "lora.targets is empty; it must have attention, mlp or both"),
        ("train.min_delta=-1", "train.min_delta is -1.0; it must be at least 0"),
        ("optim.sam_rho=0", "optim.sam_rho is 0.0; it must be above 0"),
        ("optim.betas=[-0.9, 0.9]", "optim.betas are (-0.9, 0.9); each must be from 0 to below 1"),
        ("optim.nesterov=true", "optim.nesterov needs name=sgd or name=muon, and a momentum above 0"),
        ("schedule.warmup_epochs=-1", "schedule.warmup_epochs is -1.0; it must be at least 0"),
        ("schedule.warmup_lr=-1", "schedule.warmup_lr is -1.0; it must be at least 0"),
        ("schedule.min_lr=-1", "schedule.min_lr is -1.0; it must be at least 0"),
        ("schedule.cooldown_epochs=-1", "schedule.cooldown_epochs is -1; it must be at least 0"),
        ("schedule.decay_epochs=0", "schedule.decay_epochs is 0.0; it must be above 0"),
        ("schedule.decay_rate=0", "schedule.decay_rate is 0.0; it must be above 0 and at most 1"),
        ("schedule.decay_rate=2", "schedule.decay_rate is 2.0; it must be above 0 and at most 1"),
        ("ema.decay=0", "ema.decay is 0.0; it must be above 0 and below 1"),
        ("ema.decay=1", "ema.decay is 1.0; it must be above 0 and below 1"),
        ("train.batch_size=0", "train.batch_size is 0; it must be at least 1"),
        ("train.accumulate=0", "train.accumulate is 0; it must be at least 1"),
        ("train.seed=-1", "train.seed is -1; it must be from 0 to 9223372036854775807"),
        ("train.eval_every=0", "train.eval_every is 0; it must be at least 1"),
        ("train.log_every=0", "train.log_every is 0; it must be at least 1"),
        ("train.accumulate=3", "train.batch_size 1024 cannot be cut into accumulate=3 equal parts"),
        ("output.keep_best=0", "output.keep_best is 0; it must be at least 1"),
        ("output.name=a\udcff", "output.name is 'a\\udcff'; it must be text, without bytes that are none"),
    ],
)
def test_value_out_of_range_says_what_is_allowed(token: str, expected: str) -> None:
    assert problem(token) == expected


def test_evaluation_needs_images_and_a_batch_of_at_least_one() -> None:
    assert problem("data.name=null", kind=EvaluateConfig).startswith("data.root is not set")
    assert problem("evaluate.batch_size=0", kind=EvaluateConfig) == "evaluate.batch_size is 0; it must be at least 1"
    assert problem("preprocess.crop=2", kind=PredictConfig).startswith("preprocess.crop is 2.0; it must be above 0")


@pytest.mark.parametrize(
    "token",
    [
        "model.drop_path_rate=0",
        "data.workers=0",
        "preprocess.crop=1",
        "augment.scale=[1, 1]",
        "augment.ratio=[1, 1]",
        "augment.label_smoothing=0",
        "augment.color_jitter=0",
        "balance.effective_beta=0",
        "optim.weight_decay=0",
        "optim.betas=[0, 0]",
        "schedule.warmup_epochs=0",
        "schedule.warmup_lr=0",
        "schedule.min_lr=0",
        "schedule.decay_rate=1",
        "schedule.warmup_epochs=300",
        "train.accumulate=1024",
        "train.seed=9223372036854775807",
    ],
)
def test_the_edge_of_a_range_is_inside_it(token: str) -> None:
    settings(token)


def test_jitter_that_the_policy_would_replace_is_refused() -> None:
    refusal = r"augment\.color_jitter is not applied beside auto_augment=rand-m9; set one of them to null"
    with pytest.raises(ConfigError, match=refusal):
        settings("augment.color_jitter=0.4", "augment.auto_augment=rand-m9")
    settings("augment.color_jitter=0.4", "augment.auto_augment=3a")


def test_an_adjustment_that_would_do_nothing_is_refused() -> None:
    refusal = (
        r"^balance\.logit_adjust does nothing beside sampler=balanced, which shows all classes equally often; drop one$"
    )
    with pytest.raises(ConfigError, match=refusal):
        settings("balance.logit_adjust=1", "balance.sampler=balanced")
    both = settings("balance.logit_adjust=1", "balance.sampler=sqrt").balance
    assert both.active() == ["balance.sampler=sqrt", "balance.logit_adjust=1.0"]


def test_a_rectangle_drawn_by_its_sides_has_no_alpha_beside_it() -> None:
    assert settings("augment.cutmix_minmax=[0.2, 0.8]", "augment.cutmix=1").augment.cutmix_minmax == (0.2, 0.8)
    message = "augment.cutmix is 0.5, but cutmix_minmax draws the rectangle instead; set one of them"
    assert problem("augment.cutmix_minmax=[0.2, 0.8]", "augment.cutmix=0.5") == message


@pytest.mark.parametrize("token", ["freeze.until=head", "lora.rank=8"])
def test_what_trains_a_part_is_not_sharded(token: str) -> None:
    name = token.partition("=")[0]
    expected = f"{name} does not go with train.shard, which is for training all weights; drop one"
    assert problem(token, "train.shard=true") == expected


def test_nesterov_is_accepted_with_muon_too() -> None:
    assert settings("optim.name=muon", "optim.nesterov=true").optim.momentum == 0.95


def test_moments_that_are_null_are_those_of_the_optimizer() -> None:
    assert settings("optim.name=lion").optim.betas == (0.9, 0.99)
    assert settings("optim.name=adan").optim.betas == (0.98, 0.92, 0.99)
    assert (settings("optim.name=lamb").optim.eps, settings().optim.eps) == (1e-6, 1e-8)
    assert settings("optim.name=adan", "optim.betas=[0.9, 0.8, 0.7]").optim.betas == (0.9, 0.8, 0.7)
    expected = "optim.betas are (0.9, 0.8); adan takes 3; null takes its own"
    assert problem("optim.name=adan", "optim.betas=[0.9, 0.8]") == expected


def test_nesterov_is_accepted_with_sgd_and_momentum() -> None:
    assert settings("optim.name=sgd", "optim.nesterov=true").optim.nesterov
    assert "optim.nesterov needs" in problem("optim.name=sgd", "optim.nesterov=true", "optim.momentum=0")


def test_warmup_may_not_be_longer_than_training() -> None:
    assert problem("train.epochs=4") == "schedule.warmup_epochs 5 is more than train.epochs 4; lower it too"
    assert problem("train.epochs=5", "schedule.warmup_epochs=5.5").endswith(
        "5.5 is more than train.epochs 5; lower it too"
    )


def test_a_bad_batch_or_accumulation_is_not_reported_twice() -> None:
    assert problem("train.accumulate=-3", "train.batch_size=10") == "train.accumulate is -3; it must be at least 1"
