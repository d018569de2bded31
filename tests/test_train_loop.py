"""The parts of a training step: learning rate, weight decay, accumulation, averages, a teacher."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_runs import assert_same, state
from torch import nn

from bunit_kernels.models import create_model
from bunit_kernels.train import main
from bunit_kernels.train.data import load_data
from bunit_kernels.train.distill import Teacher
from bunit_kernels.train.feed import Feed
from bunit_kernels.train.loop import Learner
from bunit_kernels.train.optimizers import learning_rate
from bunit_kernels.train.settings import Settings

CPU = torch.device("cpu")


def linear_learner(teacher=None, **settings) -> Learner:
    """Without batch statistics, so that a batch may be cut in parts."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    return Learner("linear", model, Settings(**settings), CPU, teacher=teacher)


def train(learner: Learner, images: str, epochs: int = 1) -> dict:
    feed = Feed(load_data(images), learner.settings, CPU)
    for _ in range(epochs):
        learner.history.append(learner.train_epoch(feed, lambda: None))
    return learner.model.state_dict()


def test_learning_rate_warms_up_and_falls_as_a_cosine():
    settings = Settings(epochs=10, lr=0.4, warmup_epochs=2)
    rates = [learning_rate(settings, epoch) for epoch in (0, 1, 2, 6, 10)]
    assert rates == pytest.approx([0.0, 0.2, 0.4, 0.2, 0.0])
    assert learning_rate(Settings(epochs=10, lr=0.4), 0) == 0.4


def test_constant_learning_rate_stays_after_the_warm_up():
    settings = Settings(epochs=10, lr=0.4, warmup_epochs=2, schedule="constant")
    assert [learning_rate(settings, epoch) for epoch in (0, 1, 2, 6, 10)] == [0, 0.2, 0.4, 0.4, 0.4]


def test_weight_decay_spares_biases_and_norms():
    model = create_model("bunit_cnn", in_channels=1, image_size=8)
    learner = Learner("bunit_cnn", model, Settings(), CPU)
    decayed, spared = learner.optimizer.param_groups
    assert decayed["weight_decay"] == 5e-4 and spared["weight_decay"] == 0
    names = {id(p): name for name, p in model.named_parameters()}
    for group, kinds in ((decayed, {"weight", "weights"}), (spared, {"weight", "bias"})):
        ends = {names[id(p)].split(".")[-1].rstrip("0123456789") for p in group["params"]}
        assert {e for e in ends if e} <= kinds
    norms = sum(
        m.weight.numel() + m.bias.numel() for m in model.modules() if isinstance(m, nn.BatchNorm2d)
    )
    assert sum(p.numel() for p in spared["params"]) == norms + 10
    assert len(names) == len(decayed["params"]) + len(spared["params"])


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_accumulated_batches_are_one_large_batch(images, parts):
    whole = train(linear_learner(batch_size=48, limit=96), images)
    cut = train(linear_learner(batch_size=48 // parts, accumulate=parts), images)
    for name in whole:  # float32: sums in another order
        torch.testing.assert_close(cut[name], whole[name], rtol=1e-5, atol=1e-6)


def test_what_is_left_of_an_epoch_is_a_step_of_its_own(images):
    """6 batches, 4 a step: a step of 4 and one of 2, each the mean over its batches."""
    learner = linear_learner(batch_size=16, accumulate=4, momentum=0.0, lr=0.1, weight_decay=0.0)
    feed = Feed(load_data(images), learner.settings, CPU)
    batches = list(feed.training(0))
    weights = [p.detach().clone().requires_grad_() for p in learner.model.parameters()]
    for first, last in ((0, 4), (4, 6)):
        loss = sum(
            F.cross_entropy(F.linear(x.flatten(1), *weights), y) for x, y in batches[first:last]
        ) / (last - first)
        rate = learning_rate(learner.settings, first / 6)
        for p, g in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            p.data -= rate * g
    learner.train_epoch(feed, lambda: None)
    for p, q in zip(learner.model.parameters(), weights, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-5, atol=1e-6)


def test_clipped_steps_are_short(images):
    learner = linear_learner(lr=1.0, momentum=0.0, weight_decay=0.0, clip_norm=1e-3, batch_size=96)
    before = [p.detach().clone() for p in learner.model.parameters()]
    train(learner, images)
    moved = torch.cat(
        [
            (p.detach() - q).flatten()
            for p, q in zip(learner.model.parameters(), before, strict=True)
        ]
    )
    assert moved.norm() == pytest.approx(1e-3, rel=1e-3)


def test_average_follows_its_formula_and_is_what_is_tested(images):
    learner = linear_learner(ema=0.9, batch_size=16)
    seen = []
    update = learner.update

    def watched():
        update()
        seen.append(learner.model[1].weight.detach().clone())

    learner.update = watched
    train(learner, images)
    expected = seen[0]
    for weight in seen[1:]:
        expected = 0.9 * expected + 0.1 * weight
    averaged = learner.average.module[1]
    torch.testing.assert_close(averaged.weight, expected, rtol=1e-5, atol=1e-6)
    x = torch.randn(4, 1, 6, 6)
    assert torch.equal(learner.predict(x), averaged(x.flatten(1)))


def test_adamw_decays_weights_alone():
    learner = linear_learner(optimizer="adamw", weight_decay=0.01)
    assert isinstance(learner.optimizer, torch.optim.AdamW)
    assert [g["weight_decay"] for g in learner.optimizer.param_groups] == [0.01, 0.0]


def test_adam_adds_epsilon_to_the_denominator(images):
    """Weights of the first step, by hand: Adam's first step is lr g / (|g| + epsilon)."""
    learner = linear_learner(optimizer="adam", epsilon=0.5, lr=0.1, weight_decay=0.0)
    assert type(learner.optimizer) is torch.optim.Adam
    before = [p.detach().clone() for p in learner.model.parameters()]
    x, labels = torch.randn(4, 1, 6, 6), torch.arange(4) % 2
    learner.backward(x, labels, 1)
    grads = [p.grad.clone() for p in learner.model.parameters()]
    learner.update()
    for p, start, g in zip(learner.model.parameters(), before, grads, strict=True):
        torch.testing.assert_close(p.detach(), start - 0.1 * g / (g.abs() + 0.5))


def test_teacher_loss_is_hintons():
    torch.manual_seed(1)
    teacher, x = nn.Linear(5, 3), torch.randn(7, 5)
    logits, loss = torch.randn(7, 3), torch.tensor(0.7)
    found = Teacher(teacher, 0.25, 2.0).loss(x, logits, loss)
    p, q = (teacher(x) / 2).softmax(1), (logits / 2).softmax(1)
    divergence = (p * (p / q).log()).sum(1).mean()
    assert found.item() == pytest.approx((0.75 * loss + 0.25 * 4 * divergence).item(), rel=1e-5)
    own = Teacher(nn.Identity(), 1.0, 3.0).loss(logits, logits, loss)
    assert own.item() == pytest.approx(0, abs=1e-6)


def test_a_student_learns_from_a_teacher_alone(images):
    """Weight 1: the labels do not count, so the student becomes its linear teacher."""
    feed = Feed(load_data(images), Settings(batch_size=16), CPU)
    torch.manual_seed(3)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    x, _ = next(feed.training(0))

    def distance(learner):
        return (learner.predict(x).softmax(1) - teacher(x).softmax(1)).abs().mean().item()

    learner = linear_learner(Teacher(teacher, 1.0, 2.0), lr=0.1, epochs=20, batch_size=16)
    before = distance(learner)
    train(learner, images, epochs=20)
    assert distance(learner) < before / 5


def test_teacher_from_a_run(tiny, tmp_path, capsys):
    _, taught = tiny("--no-dense", out="teacher")
    teacher = str(taught / "bunit_cnn_last.pt")
    code, folder = tiny("--teacher", teacher, "--teacher-weight", "0.9", out="student")
    assert code == 0, capsys.readouterr().err
    plain = tiny(out="plain")[1]
    assert_same(state(plain, "cnn_last.pt")["state"], state(folder, "cnn_last.pt")["state"])
    head = "head.weight"
    assert not torch.equal(state(plain)["state"][head], state(folder)["state"][head])

    assert tiny("--teacher", str(tmp_path / "gone.pt"), out="x")[0] == 2
    assert "no checkpoint" in capsys.readouterr().err
    assert tiny("--teacher", teacher, "--data", "digits", out="x")[0] == 2
    assert "is for images of 1x6x6, digits has 1x8x8" in capsys.readouterr().err
    content = torch.load(teacher)
    torch.save(content | {"mean": [0.9]}, tmp_path / "other.pt")
    assert tiny("--teacher", str(tmp_path / "other.pt"), out="x")[0] == 2
    assert "was trained on images of mean [0.9]" in capsys.readouterr().err


def test_average_is_what_a_checkpoint_gives(tiny, capsys):
    """Evaluated, continued from and written for others."""
    _, folder = tiny("--ema", "0.5", "--no-dense")
    content = state(folder)
    accuracy = content["history"][-1]["test_accuracy"]
    assert not torch.equal(content["state"]["head.weight"], content["average"]["head.weight"])
    capsys.readouterr()
    assert main(["--eval-only", "--checkpoint", str(folder / "bunit_cnn_last.pt")]) == 0
    assert f"{accuracy:.2%}" in capsys.readouterr().out
    path = folder / "bunit_cnn.safetensors"
    weights = load_file(path)
    assert weights.keys() == content["average"].keys()
    assert all(torch.equal(weights[name], content["average"][name]) for name in weights)
    with safe_open(path, "pt") as file:
        assert file.metadata()["model"] == '"bunit_cnn"'


def test_curves_for_tensorboard(tiny):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    _, folder = tiny("--tensorboard", "--no-dense")
    log = events.EventAccumulator(str(folder / "tensorboard" / "bunit_cnn"))
    log.Reload()
    points = [(p.step, p.value) for p in log.Scalars("test_accuracy")]
    history = state(folder)["history"]
    assert points == [(f["epoch"], pytest.approx(f["test_accuracy"])) for f in history]
    assert "images_per_second" in log.Tags()["scalars"]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--accumulate", "0"], "--accumulate must be at least 1"),
        (["--save-every", "0"], "--save-every must be at least 1"),
        (["--clip-norm", "0"], "--clip-norm must be above 0"),
        (["--temperature", "-1"], "--temperature must be above 0"),
        (["--ema", "1"], "--ema must be at least 0 and below 1"),
        (["--teacher-weight", "1.5"], "--teacher-weight must be from 0 to 1, got 1.5"),
    ],
)
def test_bad_recipes(tiny, capsys, options, message):
    code, folder = tiny(*options)
    assert code == 2 and message in capsys.readouterr().err and not folder.exists()
