"The registry: every entry trains, in colour and grey, with and without a policy; errors."

from dataclasses import replace

import pytest
import torch

from hydramix_nb import checks, classifier, gan
from hydramix_nb.augmentations import CutMix, Cutout
from hydramix_nb.baselines import GENERATORS, METHODS, build
from hydramix_nb.data import ImageSet, to_float
from hydramix_nb.diffusemix import DiffuseMix, variant_path
from hydramix_nb.files import write_png
from hydramix_nb.glico import GLICO
from hydramix_nb.policies import Policy
from hydramix_nb.supermix import SuperMix

TABLES = {
    1: [
        "Baseline",
        "Cutout",
        "Random Erasing",
        "Cosine",
        "MixUp",
        "MixUpN",
        "Scattering",
        "GLICO",
        "ChimeraMix+Grid",
        "ChimeraMix+Seg",
        "HydraMix",
        "SuperMix",
    ],
    2: ["AutoAugment", "TrivialAugment", "ChimeraMix+Grid", "ChimeraMix+Seg", "HydraMix"],
    3: ["Baseline", "MixUp", "ChimeraMix", "HydraMix"],
    5: ["Baseline", "DiffuseMix", "ChimeraMix+Grid", "ChimeraMix+Seg", "HydraMix"],
    6: ["GridMix", "SegMix", "NMix", "ChimeraMix+Grid", "ChimeraMix+Seg", "HydraMix"],
}


def pictures(n=9, classes=3, size=16, channels=3, seed=0):
    "Smooth random pictures, so that segments have more than a pixel"
    coarse = torch.rand(n, channels, 4, 4, generator=torch.Generator().manual_seed(seed)) * 255
    images = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear").to(torch.uint8)
    return ImageSet(images, torch.arange(n) % classes, [f"c{i}" for i in range(classes)])


TRAIN, TEST, GREY = pictures(), pictures(6, seed=1), pictures(channels=1)
CONFIG = classifier.profile("tiny", 16, steps=2, evaluations=1)


@pytest.fixture(scope="module")
def trained():
    "A generator per set and method; one training per set, the masks of the others put on it"
    out = {}
    for name, train in (("colour", TRAIN), ("grey", GREY)):
        one = gan.fit(train, gan.profile("tiny", 16, steps=1), progress=False)
        out[name] = {
            method: replace(one, config=replace(one.config, **changes))
            for method, changes in GENERATORS.items()
        }
    return out


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    "What DiffuseMix needs beside the images: their edited doubles, here darker ones"
    folder = tmp_path_factory.mktemp("edited")
    for train in (TRAIN, GREY):
        for image, label in zip(train.images, train.labels, strict=True):
            write_png(variant_path(folder, train.classes[label], image, "darker"), image // 2)
    return {"DiffuseMix": dict(generated=folder)}


def test_the_registry_holds_every_method_of_the_tables_cutmix_and_hydramix_plus():
    in_tables = {name for names in TABLES.values() for name in names}
    assert in_tables | {"CutMix", "HydraMix+"} == set(METHODS)
    chimeras = {"ChimeraMix+Seg", "ChimeraMix+Grid", "ChimeraMix"}
    assert set(GENERATORS) == {"HydraMix", "HydraMix+"} | chimeras
    assert GENERATORS["ChimeraMix"] == GENERATORS["ChimeraMix+Seg"]
    for changes in GENERATORS.values():
        gan.profile("paper", 32, **changes)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_with_one_seed_to_one_result(name, trained, edited):
    def run():
        method = build(
            name,
            TRAIN,
            trained=trained["colour"].get(name),
            profile="tiny",
            progress=False,
            **edited.get(name, {}),
        )
        return classifier.fit(TRAIN, TEST, method, CONFIG, progress=False)

    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    a = run()
    if name in ("GLICO", "SuperMix"):
        assert torch.equal(torch.rand(2), expected)
    b = run()
    for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_works_in_grey_and_under_a_policy(name, trained, edited):
    alone = name in ("AutoAugment", "TrivialAugment", "HydraMix+")
    policy = "none" if alone else "TrivialAugment"
    method = build(
        name,
        GREY,
        trained=trained["grey"].get(name),
        profile="tiny",
        auto_augment=policy,
        progress=False,
        **edited.get(name, {}),
    )
    training = classifier.Training(GREY, method, CONFIG)
    images, targets = training.inputs(torch.arange(6))
    assert images.shape == (6, 1, 16, 16) and images.abs().max() <= 1 + 1e-5
    assert targets.shape in ((6,), (6, 3)) and all(
        loss.isfinite() for loss in training.step().values()
    )


def test_a_policy_is_first_on_every_source_image(trained):
    method = build("Cutout", TRAIN, auto_augment="AutoAugment")
    assert method.policy.name == "AutoAugment" and isinstance(method.transform, Cutout)
    one = trained["colour"]
    for name in ("HydraMix", "ChimeraMix+Seg", "ChimeraMix+Grid", "GridMix", "SegMix", "NMix"):
        policy = dict(auto_augment="TrivialAugment")
        method = build(name, TRAIN, trained=one.get(name), p_gen=1.0, **policy)
        assert method.mixer.policy is method.policy and method.transform is None
        assert method.policy.name == "TrivialAugment" and method.p_gen == 1
    method = build("GLICO", TRAIN, profile="tiny", steps=1, progress=False, **policy)
    assert method.transform.name == "TrivialAugment" and method.policy is None
    assert classifier._mixes_labels(build("CutMix", TRAIN).mixer)
    recipes = Policy("AutoAugment", 64).recipes, Policy("AutoAugment", 96).recipes
    assert recipes == ("CIFAR10", "IMAGENET")


def test_settings_reach_what_they_name(trained, tmp_path):
    assert build("Cutout", TRAIN, size=3).transform.size == 3
    assert build("Random Erasing", TRAIN, p=1.0).transform.p == 1
    assert build("MixUpN", TRAIN, n_images=3, alpha=0.5).mixer.n_images == 3
    assert build("NMix", TRAIN, n_images=2, cache=tmp_path).mixer.n_images == 2 and any(
        tmp_path.iterdir()
    )
    assert (
        build(
            "HydraMix", TRAIN, trained=trained["colour"]["HydraMix"], n_images=3, views=2
        ).mixer.views
        == 2
    )
    assert build(
        "GLICO", TRAIN, profile="tiny", steps=1, latent=8, progress=False
    ).mixer.latents.shape == (9, 8)


@pytest.mark.parametrize("name", [n for n in GENERATORS if "Chimera" in n])
def test_chimeramix_takes_the_settings_of_hydramix_but_for_n_images(name, trained, tmp_path):
    one = trained["colour"][name]
    settings = dict(views=2, segment_noise=0.5, cache=tmp_path, mean=0.0, std=1.0)
    mixer = build(name, TRAIN, trained=one, seed=3, **settings).mixer
    assert (mixer.views, mixer.seed, mixer.segment_noise, mixer.mean[0]) == (2, 3, 0.5, 0.0)
    assert any(tmp_path.iterdir()) == (one.config.mixing != "grid")  # a grid has no segments
    with pytest.raises(ValueError, match="has no setting 'n_images'"):
        build(name, TRAIN, trained=one, n_images=3)


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("hydramix", {}, "method 'hydramix': one of"),
        ("HydraMix", {}, "needs a trained generator"),
        (
            "DiffuseMix",
            {},
            "needs a folder of edited images: nbs/experiments/diffuse.ipynb makes one",
        ),
        ("MixUp", dict(alpah=1.0), "MixUp has no setting 'alpah'; it takes alpha"),
        ("Baseline", dict(n_images=3), "takes none"),
        ("Cosine", dict(p_gen=0.5), "generates nothing"),
        ("MixUp", dict(p_gen=2.0), "p_gen=2.0"),
        ("AutoAugment", dict(auto_augment="AutoAugment"), "second one"),
        ("MixUp", dict(auto_augment="auto"), "auto_augment 'auto'"),
        ("SuperMix", dict(profile="huge"), "profile 'huge'"),
        ("Cutout", dict(size=-1), "size=-1"),
        ("Random Erasing", dict(area=(0.5, 0.1)), "area"),
        ("MixUp", dict(alpha=0), "alpha=0"),
        ("HydraMix+", {}, "needs a trained generator"),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        build(name, TRAIN, **settings)


def test_a_generator_of_another_kind_is_refused(trained):
    with pytest.raises(ValueError, match="mixing='grid'"):
        build("ChimeraMix+Grid", TRAIN, trained=trained["colour"]["HydraMix"])
    with pytest.raises(ValueError, match="mixing='hydra'"):
        build("HydraMix", TRAIN, trained=trained["colour"]["ChimeraMix+Seg"])


@pytest.mark.parametrize("name", METHODS)
def test_mixers_refuse_images_that_are_not_floats(name, trained, edited):
    mixer = build(
        name,
        TRAIN,
        trained=trained["colour"].get(name),
        profile="tiny",
        progress=False,
        **edited.get(name, {}),
    ).mixer
    if mixer is None:
        return
    certain = () if name == "HydraMix+" else (1.0,)  # a chain's links have their own
    torch.manual_seed(0)
    with pytest.raises(TypeError, match="to_float"):
        mixer.augment(TRAIN.images[:3], TRAIN.labels[:3], *certain)


RANGED = {  # for a loop of one's own
    "CutMix": lambda folder, **loop: CutMix(TRAIN, **loop),
    "GLICO": lambda folder, **loop: GLICO(TRAIN, "tiny", progress=False, **loop),
    "SuperMix": lambda folder, **loop: SuperMix(TRAIN, "tiny", progress=False, **loop),
    "DiffuseMix": lambda folder, **loop: DiffuseMix(TRAIN, folder, **loop),
}


@pytest.mark.parametrize("name", RANGED)
def test_mixers_work_in_the_range_of_a_loop(name, edited):
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def normalized(images):
        return ((images + 1) / 2 - mean.view(3, 1, 1)) / std.view(3, 1, 1)

    def made(mixer, batch):
        torch.manual_seed(0)
        return mixer(TRAIN.labels), mixer.augment(batch, TRAIN.labels, 1.0)[0]

    folder, images = edited["DiffuseMix"]["generated"], to_float(TRAIN.images)
    plain = made(RANGED[name](folder), images)
    own = made(RANGED[name](folder, mean=mean, std=std), normalized(images))
    for ours, theirs in zip(own, plain, strict=True):
        torch.testing.assert_close(ours, normalized(theirs), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=f"{name} has no setting 'mean'"):
        build(name, TRAIN, mean=0.5, std=0.5)


def test_hydramix_plus_takes_no_second_policy_and_no_share(trained):
    one = trained["colour"]["HydraMix+"]
    for settings in (dict(auto_augment="AutoAugment"), dict(p_gen=0.3)):
        with pytest.raises(ValueError, match="HydraMix. is a whole recipe"):
            build("HydraMix+", TRAIN, trained=one, **settings)
        run = dict(method="HydraMix+", profile="small", auto_augment="none", p_gen=0.5)
        run |= dict(samples_per_class=5, size=0)
        checks._check_method(run)
        with pytest.raises(ValueError, match="HydraMix. is a whole recipe"):
            checks._check_method(run | settings)
    chain = build("HydraMix+", TRAIN, trained=one, per_class=3, views=2, seed=4).mixer
    pool = chain.links[0].link
    assert len(pool.images) == 3 * len(TRAIN.classes) and pool.mixer.seed == 4


def test_own_methods_may_take_settings_or_none(monkeypatch):
    monkeypatch.setitem(METHODS, "Plain", lambda train, trained=None: classifier.Method())
    monkeypatch.setitem(
        METHODS,
        "Any",
        lambda train, trained=None, **settings: classifier.Method(loss=settings["seed"]),
    )
    assert build("Plain", TRAIN).mixer is None
    with pytest.raises(ValueError, match="no setting 'x'"):
        build("Plain", TRAIN, x=1)
    assert build("Any", TRAIN, seed=4, x=1).loss == 4


def test_methods_that_train_leave_their_state_in_a_folder(tmp_path):
    for name in ("MixUp", "GLICO", "SuperMix"):
        build(name, TRAIN, profile="tiny", folder=tmp_path / name, progress=False)
    kept = tmp_path.rglob("checkpoint.safetensors")
    assert {path.parent.relative_to(tmp_path).as_posix() for path in kept} == {
        "GLICO",
        "SuperMix/teacher",
        "SuperMix/pool",
    }


@pytest.mark.cuda
@pytest.mark.parametrize("name", METHODS)
def test_every_method_on_a_gpu(name, edited):
    train = TRAIN.to("cuda")
    trained = (
        gan.fit(train, gan.profile("tiny", 16, steps=1, **GENERATORS[name]), progress=False)
        if name in GENERATORS
        else None
    )
    method = build(
        name, train, trained=trained, profile="tiny", progress=False, **edited.get(name, {})
    )
    result = classifier.fit(train, TEST, method, CONFIG, progress=False)
    assert next(result.model.parameters()).is_cuda and result.history[-1]["loss"] == pytest.approx(
        result.history[-1]["loss"]
    )
    if name == "HydraMix+":
        assert method.mixer(to_float(train.images[:3]), train.labels[:3])[0].is_cuda
    elif method.mixer is not None:
        assert method.mixer(train.labels[:3]).is_cuda
