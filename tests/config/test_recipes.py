"""The recipes that come with the package: complete, buildable, documented, and not edited by accident."""

import re
from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
import yaml
from torchvision.datasets import Flowers102

from vitrail.config.commands import TrainConfig
from vitrail.config.recipes import RECIPES, find_recipe, list_recipes
from vitrail.config.resolve import flatten, parse_command_line, read_yaml, resolve
from vitrail.config.sections import PreprocessSection
from vitrail.config.values import to_plain
from vitrail.imagenet import list_wordnet_ids
from vitrail.models.registry import FAMILIES, build_config, create_model, find_variant
from vitrail.training.setup import build_schedule
from vitrail.transfer.rules import Circumstances, choose_settings
from vitrail.transfer.survey import Survey
from vitrail.weights.adapt import shared_rows

SECTIONS = [
    "model", "weights", "data", "preprocess", "augment", "balance", "multi_label", "distill", "token_labels", "optim",
    "freeze", "lora", "schedule", "ema", "train", "output",
]  # fmt: skip
PUBLISHED = re.compile(r"^# Published: ([\d.]+)(?: / ([\d.]+))? \(top-1.*\)\.$", re.MULTILINE)
IMAGENET = [name for name in list_recipes() if "imagenet" in name]


def header_of(name: str) -> str:
    lines = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if line.startswith("#"))


def config_of(name: str) -> TrainConfig:
    return resolve(TrainConfig, [read_yaml(find_recipe(name)[1])]).config


# model, lr, weight decay, clip, drop path, warm-up, cooldown, ema, repeats, batch, interpolation
IMAGENET_SETTINGS = {
    "tnt_s_imagenet": ("tnt_s_patch16_224", 1e-3, 0.05, None, 0.1, 5, 10, 0.99996, 3, 1024, "random"),
    "tnt_b_imagenet": ("tnt_b_patch16_224", 1e-3, 0.05, None, 0.1, 5, 10, 0.99996, 3, 1024, "random"),
    "t2t_vit_7_imagenet": ("t2t_vit_7", 1e-3, 0.03, None, 0.1, 10, 10, 0.99996, 1, 512, "random"),
    "t2t_vit_10_imagenet": ("t2t_vit_10", 1e-3, 0.03, None, 0.1, 10, 10, 0.99996, 1, 512, "random"),
    "t2t_vit_12_imagenet": ("t2t_vit_12", 1e-3, 0.03, None, 0.1, 10, 10, 0.99996, 1, 512, "random"),
    "t2t_vit_14_384_imagenet": ("t2t_vit_14", 5e-4, 0.05, None, 0.1, 10, 10, 0.99996, 1, 512, "random"),
    "t2t_vit_14_imagenet": ("t2t_vit_14", 5e-4, 0.05, None, 0.1, 10, 10, 0.99996, 1, 512, "random"),
    "t2t_vit_19_imagenet": ("t2t_vit_19", 5e-4, 0.065, None, 0.1, 10, 10, 0.99996, 1, 512, "random"),
    "t2t_vit_24_imagenet": ("t2t_vit_24", 5e-4, 0.065, None, 0.1, 10, 10, 0.99996, 1, 512, "random"),
    "t2t_vit_t_14_imagenet": ("t2t_vit_t_14", 5e-4, 0.05, None, 0.1, 10, 10, 0.99996, 1, 512, "random"),
    "t2t_vit_t_19_imagenet": ("t2t_vit_t_19", 5e-4, 0.065, None, 0.1, 10, 10, 0.99996, 1, 512, "random"),
    "t2t_vit_t_24_imagenet": ("t2t_vit_t_24", 5e-4, 0.065, None, 0.1, 10, 10, 0.99996, 1, 512, "random"),
    "ptnt_ti_imagenet": ("ptnt_ti_patch16_192", 1e-3, 0.05, None, 0.1, 20, 10, 0.99996, 3, 1024, "random"),
    "ptnt_s_imagenet": ("ptnt_s_patch16_256", 1e-3, 0.05, None, 0.1, 20, 10, 0.99996, 3, 1024, "random"),
    "ptnt_m_imagenet": ("ptnt_m_patch16_256", 1e-3, 0.05, None, 0.1, 20, 10, 0.99996, 3, 1024, "random"),
    "ptnt_b_imagenet": ("ptnt_b_patch16_256", 1e-3, 0.05, None, 0.1, 20, 10, 0.99996, 3, 1024, "random"),
    "twins_pcpvt_small_imagenet": ("twins_pcpvt_small", 1e-3, 0.05, 5.0, 0.2, 5, 0, None, 1, 1024, "bicubic"),
    "twins_pcpvt_base_imagenet": ("twins_pcpvt_base", 1e-3, 0.05, 5.0, 0.3, 5, 0, None, 1, 1024, "bicubic"),
    "twins_pcpvt_large_imagenet": ("twins_pcpvt_large", 1e-3, 0.05, 5.0, 0.5, 5, 0, None, 1, 1024, "bicubic"),
    "twins_svt_small_imagenet": ("twins_svt_small", 1e-3, 0.05, 5.0, 0.2, 5, 0, None, 1, 1024, "bicubic"),
    "twins_svt_base_imagenet": ("twins_svt_base", 1e-3, 0.05, 5.0, 0.3, 5, 0, None, 1, 1024, "bicubic"),
    "twins_svt_large_imagenet": ("twins_svt_large", 1e-3, 0.05, 5.0, 0.5, 20, 0, None, 1, 1024, "bicubic"),
}


@pytest.mark.parametrize("name", list_recipes())
def test_recipe_resolves_alone_and_sets_only_what_it_names(name: str) -> None:
    layer = read_yaml(find_recipe(name)[1], origin=name)
    resolved = resolve(TrainConfig, [layer])
    assert set(resolved.origins) == {f"{section}.{key}" for section, content in layer.values.items() for key in content}
    assert set(resolved.origins.values()) == {name}


@pytest.mark.parametrize("name", list_recipes())
def test_recipe_builds_its_model(name: str) -> None:
    section = config_of(name).model
    overrides = dict(section.options, drop_path_rate=section.drop_path_rate)
    if section.image_size is not None:
        overrides["image_size"] = section.image_size
    built = build_config(section.name, **overrides)
    assert built.drop_path_rate == section.drop_path_rate
    with torch.device("meta"):
        model = create_model(section.name, **overrides)
    assert model.config == built
    assert next(model.parameters()).is_meta


@pytest.mark.parametrize("name", list_recipes())
def test_header_has_the_command_and_what_was_reproduced(name: str) -> None:
    header = header_of(name)
    assert re.search(rf"vitrail train {re.escape(name)}(\s|$)", header), header
    assert re.search(r"^# Reproduced: \S", header, re.MULTILINE), header
    for page in re.findall(r"benchmarks/[\w.-]+\.md", header):
        assert (RECIPES.parents[2] / page).exists(), page


@pytest.mark.parametrize("name", list_recipes())
def test_header_comes_first_and_is_ascii_lines_of_at_most_120_columns(name: str) -> None:
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 120
    assert text.startswith(header_of(name) + "\n")


@pytest.mark.parametrize("name", list_recipes())
def test_sections_come_in_the_order_of_the_schema(name: str) -> None:
    written = list(yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8")))
    assert written == [section for section in SECTIONS if section in written]
    assert list(get_type_hints(TrainConfig)) == SECTIONS


@pytest.mark.parametrize("name", list_recipes())
def test_numbers_are_written_so_that_yaml_reads_them_as_numbers(name: str) -> None:
    content = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    texts = [value for section in content.values() for value in section.values() if isinstance(value, str)]
    assert not [text for text in texts if re.fullmatch(r"[-+]?[\d.]+([eE][-+]?\d+)?", text)]


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_header_has_the_published_figures_of_the_model_table(name: str) -> None:
    found = PUBLISHED.search(header_of(name))
    assert found, header_of(name)
    if config_of(name).model.image_size is not None:  # the table has each model at its own size
        assert (name, found[1]) == ("t2t_vit_14_384_imagenet", "83.3")
        return
    _, variant = find_variant(config_of(name).model.name)
    assert variant.source == "official"
    assert float(found[1]) == variant.top1
    assert (found[2] and float(found[2])) == variant.top5


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_command_takes_the_root_that_the_recipe_leaves_open(name: str) -> None:
    command = f"#   torchrun --nproc-per-node 8 -m vitrail train {name} data.root=/path/to/imagenet"
    assert command in header_of(name).splitlines()
    data = config_of(name).data
    assert (data.name, data.root, data.train_split, data.val_split) == (None, "imagenet", "train", "val")


def test_every_model_with_an_officially_published_accuracy_has_an_imagenet_recipe() -> None:
    variants = {name: variant for family in FAMILIES for name, variant in family.variants.items()}
    published = {name for name, variant in variants.items() if variant.top1 and variant.source == "official"}
    assert {config_of(name).model.name for name in IMAGENET} == published
    assert set(IMAGENET) == set(IMAGENET_SETTINGS)


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_settings_are_those_of_the_official_runs(name: str) -> None:
    config = config_of(name)
    assert IMAGENET_SETTINGS[name] == (
        config.model.name,
        config.optim.lr,
        config.optim.weight_decay,
        config.optim.clip_norm,
        config.model.drop_path_rate,
        config.schedule.warmup_epochs,
        config.schedule.cooldown_epochs,
        config.ema.decay,
        config.augment.repeats,
        config.train.batch_size,
        config.augment.interpolation,
    )


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_runs_last_310_epochs_except_twins(name: str) -> None:
    config = config_of(name)
    assert config.train.epochs == 300
    assert config.train.epochs + config.schedule.cooldown_epochs == (300 if name.startswith("twins") else 310)


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_settings_that_all_official_runs_share(name: str) -> None:
    config = config_of(name)
    optim, schedule, augment = config.optim, config.schedule, config.augment
    assert (optim.name, optim.betas, optim.eps) == ("adamw", (0.9, 0.999), 1e-8)
    assert (optim.lr_base_batch, optim.layer_decay) == (None, None)
    assert (schedule.name, schedule.warmup_lr, schedule.min_lr) == ("cosine", 1e-6, 1e-5)
    assert (augment.scale, augment.ratio, augment.hflip) == ((0.08, 1.0), (3 / 4, 4 / 3), 0.5)
    assert (augment.auto_augment, augment.color_jitter, augment.erase_prob) == ("rand-m9-mstd0.5-inc1", None, 0.25)
    assert (augment.mixup, augment.cutmix, augment.mix_prob, augment.mix_switch_prob) == (0.8, 1.0, 1.0, 0.5)
    assert augment.label_smoothing == 0.1
    assert (config.train.precision, config.train.accumulate) == ("bfloat16", 1)
    assert (config.model.image_size, config.model.options) == (384 if "384" in name else None, {})
    assert config.preprocess == PreprocessSection(), "the model's card says how images are prepared"


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_images_are_erased_and_rates_set_when_the_official_runs_do(name: str) -> None:
    config = config_of(name)
    assert config.augment.erase == ("before_mix" if name.startswith("twins") else "after_mix")
    assert (config.augment.erase_mode, config.augment.erase_count, config.augment.mix_mode) == ("pixel", 1, "batch")
    assert config.schedule.step == "epoch"


# the official log's train_lr in its epochs 2, 6, 20, 100 and 299, which is the rate of the epoch before
TWINS_LOGS = {
    "twins_pcpvt_small": (0.0002508, 0.0012491503115478462, 0.0012377681282654562, 0.0009456056777652429,
                          1.0135976245596009e-05),
    "twins_svt_small": (0.0004008, 0.001998636387080776, 0.0019803698187486067, 0.0015114962086716307,
                        1.0218219942528794e-05),
    "twins_svt_base": (0.0002008, 0.0009993216197035084, 0.000990234231437762, 0.0007569755007964469,
                       1.0108561679951307e-05),
    "twins_svt_large": (5.095e-05, 0.00025075, 0.00095005, 0.0007569755007964469, 1.0108561679951307e-05),
}  # fmt: skip


@pytest.mark.parametrize("name", TWINS_LOGS)
def test_twins_rates_are_those_of_the_official_logs_with_the_override_that_the_recipe_names(name: str) -> None:
    override = re.search(r"For the run of the log, add: (.*)$", header_of(f"{name}_imagenet"), re.MULTILINE)
    tokens = override[1].split() if override else []
    config = resolve(TrainConfig, [read_yaml(find_recipe(f"{name}_imagenet")[1]), parse_command_line(tokens)]).config
    assert config.optim.lr / config.train.batch_size == 5e-4 / 512
    rate = build_schedule(config, 10)
    assert [rate((epoch - 1) * 10 + 5) for epoch in (2, 6, 20, 100, 299)] == pytest.approx(TWINS_LOGS[name], rel=1e-12)


CIFAR = {
    "t2t_vit_14_cifar10": 98.3,
    "t2t_vit_14_cifar100": 88.4,
    "t2t_vit_19_cifar10": 98.4,
    "t2t_vit_19_cifar100": 89.0,
}


@pytest.mark.parametrize("name", CIFAR)
def test_transfers_to_cifar_have_the_official_settings(name: str) -> None:
    config, found = config_of(name), PUBLISHED.search(header_of(name))
    assert found
    assert float(found[1]) == CIFAR[name]
    assert "# Cost: unknown.\n" in header_of(name)
    optim, rate = config.optim, build_schedule(config, 781)
    assert (optim.name, optim.lr, optim.momentum, optim.nesterov) == ("sgd", 0.05, 0.9, False)
    assert (optim.weight_decay, optim.decay_on, optim.backbone_scale) == (5e-4, "all", 0.01)
    parameter = torch.nn.Parameter(torch.zeros(1))
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD([parameter], lr=0.05), T_max=60, eta_min=2e-4)
    for epoch in range(60):
        assert rate(epoch * 781 + 780) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        theirs.optimizer.step()
        theirs.step()
    assert (config.train.epochs, config.train.batch_size, config.ema.decay) == (60, 64, None)
    assert config.model.weights is not None, "without weights it would begin afresh, and not say so"


# the paper's figures at 384 pixels; its settings are an author's answer in issue 76 of Efficient-AI-Backbones
TNT_TRANSFERS = {
    "tnt_s_384_cifar10": 98.7,
    "tnt_s_384_cifar100": 90.1,
    "tnt_s_384_oxford_pets": 94.7,
    "tnt_s_384_flowers102": 98.8,
}


@pytest.mark.parametrize("name", TNT_TRANSFERS)
def test_transfers_of_tnt_have_the_published_figure_and_the_authors_settings(name: str) -> None:
    config, found = config_of(name), PUBLISHED.search(header_of(name))
    assert found
    assert float(found[1]) == TNT_TRANSFERS[name]
    assert (config.model.name, config.model.image_size, config.model.weights) == (
        "tnt_s_patch16_224",
        384,
        "pretrained",
    )
    assert (config.optim.name, config.optim.lr, config.optim.weight_decay) == ("adamw", 5e-5, 5e-4)
    assert (config.train.batch_size, config.augment.repeats, config.augment.mixup, config.augment.cutmix) == (
        128,
        3,
        0.8,
        1,
    )
    assert config.ema.warmup, "0.99996 keeps what training began with, where updates are some thousand"


ENLARGED = ["t2t_vit_14_384_finetune", "tnt_s_384_finetune", "twins_svt_small_384_finetune"]


@pytest.mark.parametrize("name", ENLARGED)
def test_larger_images_begin_with_the_weights_of_smaller_ones(name: str) -> None:
    config, first = config_of(name), config_of(name.replace("384_finetune", "imagenet"))
    assert (config.model.name, config.model.image_size, config.model.weights) == (first.model.name, 384, "pretrained")
    assert config.optim.lr <= first.optim.lr / 12
    assert config.train.epochs == first.train.epochs / 10
    assert config.augment == replace(first.augment, repeats=1)
    assert config.preprocess.crop == 1.0


OURS = [
    "t2t_vit_14_cifar10_adamw",
    "t2t_vit_14_cifar100_adamw",
    "twins_svt_small_oxford_pets",
    "twins_svt_small_flowers102",
]
IMAGES = {"cifar10": (50_000, 10), "cifar100": (50_000, 100), "oxford-pets": (3_680, 37), "flowers102": (2_040, 102)}


@pytest.mark.parametrize("name", OURS)
def test_our_transfers_are_what_finetune_chooses(name: str) -> None:
    """As by the rules, for the linear probe that the header assumes."""
    config, header = config_of(name), header_of(name)
    n, k = IMAGES[config.data.name or ""]
    probe = float(re.search(r"linear probe of about (\d+) %", header)[1])  # type: ignore[index]
    images = Survey(train_images=n, val_images=n, counts=(n // k,) * k, is_multi_label=False, channels=3, bits=8)
    width = create_model(config.model.name).num_features
    known = Circumstances(num_features=width, on_cpu=False, has_bfloat16=True, reached=probe)
    chosen = {one.key: one.value for one in choose_settings(images, known)}
    for key in ("train.eval_first", "train.eval_every"):  # a recipe has no probe, and few epochs
        chosen.pop(key)
    written = flatten(config)
    for key in (
        "optim.lr",
        "schedule.warmup_lr",
        "schedule.min_lr",
    ):  # the features'; the head has no probe to go on from
        written[key] *= config.optim.backbone_scale
    for key, value in chosen.items():
        value = pytest.approx(value, rel=0.05) if isinstance(value, float) else to_plain(value)
        assert written[key] == value, key
    assert "Published: nothing" in header
    times, epochs = 1 / config.optim.backbone_scale, config.freeze.epochs
    assert config.freeze.until == "head", "features are not changed by a head that has learnt nothing"
    assert f"learns at {times:.0f} times" in header
    assert re.search(rf"the first {'epoch' if epochs == 1 else f'{epochs} epochs'} alone \(freeze\.epochs\)", header)


# torchvision reads the names of the pets from the files
PETS = (
    "Abyssinian, American Bulldog, American Pit Bull Terrier, Basset Hound, Beagle, Bengal, Birman, Bombay, Boxer, "
    "British Shorthair, Chihuahua, Egyptian Mau, English Cocker Spaniel, English Setter, German Shorthaired, "
    "Great Pyrenees, Havanese, Japanese Chin, Keeshond, Leonberger, Maine Coon, Miniature Pinscher, Newfoundland, "
    "Persian, Pomeranian, Pug, Ragdoll, Russian Blue, Saint Bernard, Samoyed, Scottish Terrier, Shiba Inu, Siamese, "
    "Sphynx, Staffordshire Bull Terrier, Wheaten Terrier, Yorkshire Terrier"
)
CIFAR10 = "airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck"
CIFAR100 = (
    "apple, aquarium_fish, baby, bear, beaver, bed, bee, beetle, bicycle, bottle, bowl, boy, bridge, bus, butterfly, "
    "camel, can, castle, caterpillar, cattle, chair, chimpanzee, clock, cloud, cockroach, couch, crab, crocodile, "
    "cup, dinosaur, dolphin, elephant, flatfish, forest, fox, girl, hamster, house, kangaroo, keyboard, lamp, "
    "lawn_mower, leopard, lion, lizard, lobster, man, maple_tree, motorcycle, mountain, mouse, mushroom, oak_tree, "
    "orange, orchid, otter, palm_tree, pear, pickup_truck, pine_tree, plain, plate, poppy, porcupine, possum, rabbit, "
    "raccoon, ray, road, rocket, rose, sea, seal, shark, shrew, skunk, skyscraper, snail, snake, spider, squirrel, "
    "streetcar, sunflower, sweet_pepper, table, tank, telephone, television, tiger, tractor, train, trout, tulip, "
    "turtle, wardrobe, whale, willow_tree, wolf, woman, worm"
)


@pytest.mark.parametrize("name", [*CIFAR, *TNT_TRANSFERS, *OURS])
def test_a_transfer_says_which_rows_of_its_head_are_kept(name: str) -> None:
    flowers = ", ".join(Flowers102.classes)
    sets = {"oxford-pets": PETS, "flowers102": flowers, "cifar10": CIFAR10, "cifar100": CIFAR100}
    classes = sets[config_of(name).data.name or ""].split(", ")
    assert len(classes) == IMAGES[config_of(name).data.name or ""][1]
    kept = [classes[row] for row, _ in shared_rows(list_wordnet_ids(), classes)]
    said = re.search(
        r"# (\d+) of the (\d+) rows of the head (?:is|are) kept .* \((.*?)(, \.\.\.)?\); ", header_of(name)
    )
    if not kept:
        assert said is None
        return
    assert said
    assert (int(said[1]), int(said[2])) == (len(kept), len(classes))
    named = said[3].split(", ")
    assert set(named) <= set(kept)
    assert bool(said[4]) == (len(named) < len(kept))


@pytest.mark.parametrize("name", TNT_TRANSFERS)
def test_a_transfer_of_tnt_says_what_its_average_would_keep_of_the_initial_weights(name: str) -> None:
    config = config_of(name)
    updates = IMAGES[config.data.name or ""][0] // config.train.batch_size * config.train.epochs
    share = (config.ema.decay or 0) ** updates
    assert f"with {100 * share:.0f} % of the initial weights in it" in " ".join(header_of(name).split("\n# "))


def test_the_recipe_of_a_consistent_teacher_is_named_by_both_and_learns_from_mixed_images_alone() -> None:
    config, plain = config_of("tnt_s_from_twins_svt_large"), config_of("tnt_s_imagenet")
    assert (config.model.name, config.distill.teacher) == (plain.model.name, "twins_svt_large")
    assert (config.distill.mixed, config.distill.weight, config.distill.loss) == (True, 1, "soft")
    assert (config.augment.mixup, config.augment.mix_mode, config.augment.cutmix) == (1, "pair", 0)
    assert config.train.epochs == 4 * plain.train.epochs
    assert config.optim == plain.optim


def test_every_recipe_that_begins_with_weights_is_a_transfer_tested_here() -> None:
    begins = {name for name in list_recipes() if config_of(name).model.weights}
    assert begins == {*CIFAR, *TNT_TRANSFERS, *ENLARGED, *OURS}


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_batch_divides_over_the_processes_of_its_command(name: str) -> None:
    processes = int(re.search(r"--nproc-per-node (\d+)", header_of(name))[1])  # type: ignore[index]
    assert config_of(name).train.batch_size % processes == 0


def test_recipes_lie_where_the_package_looks_for_them() -> None:
    assert {path.stem for path in Path(RECIPES).iterdir() if path.suffix == ".yaml"} == set(list_recipes())
    assert not [path.name for path in RECIPES.iterdir() if path.suffix in (".yml", ".json")]
