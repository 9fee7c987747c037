"What a result is made of: everything that decides it is seen, and nothing else"

import functools
import json
import subprocess
import sys
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torchvision.transforms import v2

from hydramix_nb.data import ImageSet
from hydramix_nb.identity import describe
from hydramix_nb.mixing import Mixer, NMix


def images(seed=0):
    data = torch.randint(
        256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    return ImageSet(data, torch.arange(6) % 2, ["a", "b"])


def focal(gamma):
    def loss(outputs, targets):
        p = outputs.softmax(1).gather(1, targets[:, None])
        return (-((1 - p) ** gamma) * p.log()).mean()

    return loss


def other_default(value):
    def copy(outputs, targets, smoothing=value):
        return F.cross_entropy(outputs, targets, label_smoothing=smoothing)

    return copy


@dataclass
class Fields:
    a: int = 1
    b: object = None


class Slots:
    __slots__ = ("x",)

    def __init__(self, x):
        self.x = x


class Hidden:
    __slots__ = "__value"  # one name, which Python changes to _Hidden__value

    def __init__(self, value):
        self.__value = value


class Attributes(Slots):
    def __init__(self, x, y):
        self.x, self.y = x, y


def contained(base, items=(), code="x", **attributes):
    "An object of a class that somebody has derived from a container"
    space = dict(base=base, __name__="__main__")
    exec(f"class Own(base):\n    def __call__(self, x): return {code}", space)
    out = space["Own"](items)
    vars(out).update(attributes)
    return out


class Pair(NamedTuple):
    a: int
    b: int


def net(seed=0, p=0.1):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 3), nn.Dropout(p))


def hooked():
    out = net()
    out.register_forward_hook(lambda module, args, output: output + 1)
    return out


def mixer(code):
    space = dict(Mixer=Mixer, __name__="__main__")
    exec(f"class Own(Mixer):\n    n_images = 1\n    def mix(self, index): return {code}", space)
    return space["Own"](images())


def global_of(value):
    space = dict(value=value, __name__="__main__")
    exec("def f(x): return [x * value for _ in range(2)]", space)
    return space["f"]


def weighted(weight):
    def loss(x):
        return loss.weight * x

    loss.weight = weight
    return loss


PAIRS = dict(
    attribute=(lambda: nn.CrossEntropyLoss(), lambda: nn.CrossEntropyLoss(label_smoothing=0.5)),
    tensor=(
        lambda: nn.CrossEntropyLoss(weight=torch.ones(3)),
        lambda: nn.CrossEntropyLoss(weight=torch.tensor([1.0, 1, 2])),
    ),
    closure=(lambda: focal(2), lambda: focal(3)),
    default=(lambda: other_default(0.1), lambda: other_default(0.2)),
    constant=(lambda: lambda x: x + 0.1, lambda: lambda x: x + 0.2),
    method=(lambda: lambda x: x.sin(), lambda: lambda x: x.cos()),
    global_=(lambda: global_of(2), lambda: global_of(3)),
    partial=(
        lambda: functools.partial(F.cross_entropy, label_smoothing=0.1),
        lambda: functools.partial(F.cross_entropy, label_smoothing=0.2),
    ),
    function=(lambda: F.cross_entropy, lambda: F.mse_loss),
    torchvision=(lambda: v2.GaussianBlur(3, 1.0), lambda: v2.GaussianBlur(3, 2.0)),
    compose=(
        lambda: v2.Compose([v2.RandomRotation(5)]),
        lambda: v2.Compose([v2.RandomRotation(6)]),
    ),
    weights=(lambda: net(0), lambda: net(1)),
    layer=(lambda: net(), lambda: net(p=0.2)),
    mode=(lambda: net(), lambda: net().eval()),
    hook=(lambda: net(), hooked),
    images=(lambda: images(0), lambda: images(1)),
    mixer=(lambda: NMix(images()), lambda: NMix(images(), n_images=2)),
    own_mixer=(lambda: mixer("index * 2"), lambda: mixer("index * 3")),
    bound=(lambda: NMix(images()).augment, lambda: NMix(images(), 2).augment),
    fields=(lambda: Fields(b=[1]), lambda: Fields(b=[2])),
    slots=(lambda: Slots(1), lambda: Slots(2)),
    hidden_slot=(lambda: Hidden(1), lambda: Hidden(2)),
    slots_beside=(lambda: Attributes(1, 2), lambda: Attributes(2, 2)),
    beside_slots=(lambda: Attributes(1, 2), lambda: Attributes(1, 3)),
    own_list=(lambda: contained(list, [1]), lambda: contained(list, [2])),
    own_class=(lambda: contained(list, [1]), lambda: [1]),
    own_code=(lambda: contained(list), lambda: contained(list, code="2 * x")),
    own_attribute=(lambda: contained(dict, by=1), lambda: contained(dict, by=2)),
    own_ordered=(lambda: contained(OrderedDict, by=1), lambda: contained(OrderedDict, by=2)),
    own_set=(lambda: contained(set, by=1), lambda: contained(set, by=2)),
    own_bytes=(lambda: contained(bytes, by=1), lambda: contained(bytes, by=2)),
    own_tuple=(lambda: Pair(1, 2), lambda: (1, 2)),
    function_attribute=(lambda: weighted(1), lambda: weighted(2)),
    namespace=(lambda: SimpleNamespace(x=1), lambda: SimpleNamespace(x=2)),
    array=(lambda: np.arange(3), lambda: np.arange(3) + 1),
    dtype=(lambda: torch.float32, lambda: torch.float16),
    path=(lambda: Path("a"), lambda: Path("b")),
    keys=(lambda: {1: "a"}, lambda: {2: "a"}),
    set=(lambda: {1, "a"}, lambda: {1, "b"}),
    deque=(lambda: deque([1]), lambda: deque([2])),
    generator=(lambda: np.random.default_rng(0), lambda: np.random.default_rng(1)),
    deep=(
        lambda: [[[[[[[[Fields(b=torch.zeros(2))]]]]]]]],
        lambda: [[[[[[[[Fields(b=torch.ones(2))]]]]]]]],
    ),
)


@pytest.mark.parametrize("kind", PAIRS)
def test_what_decides_is_seen_and_what_is_made_anew_is_the_same(kind):
    one, other = PAIRS[kind]
    unknown = []
    assert json.dumps(describe(one(), unknown)) == json.dumps(describe(one()))
    assert describe(one()) != describe(other())
    assert unknown == []


def test_containers_of_libraries_are_what_they_hold():
    assert describe(OrderedDict(a=1)) == describe(dict(a=1)) == dict(a=1)
    state = nn.Linear(2, 2).state_dict()  # an OrderedDict with an attribute
    assert describe(state) == describe(dict(state))
    assert describe(torch.eye(2).max(0)) == describe(list(torch.eye(2).max(0)))


def test_what_cannot_be_looked_into_is_told():
    for hidden in (threading.Lock(), (i for i in ()), open(__file__)):
        unknown = []
        describe(dict(inside=[hidden]), unknown)
        assert unknown == [f"{type(hidden).__module__}.{type(hidden).__qualname__}"]


def test_own_attributes_beside_made_of():
    class Counting:
        def __init__(self, strength):
            self.strength, self.calls = strength, 0

        def made_of(self):
            return dict(strength=self.strength)

    a, b = Counting(1), Counting(1)
    a.calls = 5
    assert describe(a) == describe(b) != describe(Counting(2))


def test_the_same_in_another_process(tmp_path):
    "A method of a user's own script: a class, a closure, a global, a set"
    (tmp_path / "script.py").write_text("""
import json, torch, typing
from hydramix_nb.identity import describe
strength, names = 0.5, {"a", "b", "c"}
class Transform:
    def __init__(self): self.w = torch.ones(3)
    def __call__(self, x): return x * strength if "a" in {"a", "b", "c"} else names
def f(k):
    return lambda x: x + k
class Own(list): pass
class Pair(typing.NamedTuple):
    a: int
own = Own([Pair(1)])
own.set = names
print(json.dumps(describe([Transform(), f(3), names, own])))
""")
    runs = [
        subprocess.run(
            [sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
