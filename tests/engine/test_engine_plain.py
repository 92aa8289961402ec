"""The engine against a training loop in plain PyTorch, written here from nothing but torch and the order of samples."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from small_parts import steep
from small_runs import BATCH, STEPS, fit, largest_difference
from torch import nn

from distmem.data.order import Order
from distmem.distributed import World

SEED = 3


def read_digits():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    split = train_test_split(digits.data / 16, digits.target, test_size=0.2, stratify=digits.target, random_state=0)
    x, x_test, y, y_test = (torch.tensor(part) for part in split)
    return x.float(), y, x_test.float(), y_test


def plain_net(start, dtype=torch.float32):
    """A Sequential with the weights of the engine's mlp."""
    weights = list(start.values())
    layers: list[nn.Module] = []
    for weight in weights[::2]:
        layers += [nn.Linear(weight.shape[1], weight.shape[0]), nn.ReLU()]
    net = nn.Sequential(*layers[:-1]).to(dtype)
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), weights, strict=True):
            parameter.copy_(value)
    return net


def batches(samples, batch, steps):
    """Ids of each step: whole epochs, the last batch of each shorter."""
    epoch = 0
    while True:
        ids = torch.from_numpy(Order(samples, SEED, epoch).take(0, samples))
        for start in range(0, samples, batch):
            if steps == 0:
                return
            yield ids[start : start + batch]
            steps -= 1
        epoch += 1


def plain_loop(net, optimizer, x, y, steps, batch=BATCH, clip=None, rates=None, autocast=None, loss=None):
    """The loop that any tutorial shows; gives losses and gradient norms."""
    loss = loss or F.cross_entropy
    losses, norms = [], []
    for step, ids in enumerate(batches(len(x), batch, steps)):
        if rates:
            optimizer.param_groups[0]["lr"] = rates(step)
        with torch.autocast("cpu", autocast) if autocast else nullcontext():
            output = net(x[ids])
            value = loss(output.float() if output.dtype in (torch.float16, torch.bfloat16) else output, y[ids])
        optimizer.zero_grad()
        value.backward()
        if clip:
            norms.append(float(nn.utils.clip_grad_norm_(net.parameters(), clip)))
        optimizer.step()
        losses.append(float(value.detach()))
    return losses, norms


def assert_same_net(net, weights, rtol):
    for parameter, value in zip(net.parameters(), weights.values(), strict=True):
        assert parameter.dtype == value.dtype
        assert (parameter - value).abs().max() <= rtol * parameter.abs().max()


OPTIMIZERS = {
    "sgd": ("{momentum: 0.9, weight_decay: 0.01}", 0.1, {"momentum": 0.9, "weight_decay": 0.01}, torch.optim.SGD),
    "adam": ("{}", 0.003, {}, torch.optim.Adam),
    "adamw": ("{weight_decay: 0.1}", 0.003, {"weight_decay": 0.1}, torch.optim.AdamW),
    "adadelta": ("{rho: 0.8}", 1.0, {"rho": 0.8}, torch.optim.Adadelta),
    "rmsprop": ("{}", 0.001, {}, torch.optim.RMSprop),
}


@pytest.mark.parametrize("steps", [1, STEPS])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_engine_does_what_a_plain_loop_does(name, steps, tmp_path):
    text, lr, args, kind = OPTIMIZERS[name]
    more = (f"train.steps={steps}", "train.precision=64-true")
    done = fit(World(), tmp_path, f"optim.name={name}", f"optim.lr={lr}", f"optim.args={text}", *more)
    net = plain_net(done.start, torch.float64)
    x, y, x_test, y_test = read_digits()
    losses, _ = plain_loop(net, kind(net.parameters(), lr=lr, **args), x.double(), y, steps)

    assert largest_difference(done.losses, losses) < 1e-9
    assert_same_net(net, done.weights, 1e-9)
    assert [line["step"] for line in done.steps()] == list(range(1, steps + 1))
    assert steps == 1 or done.losses[-1] < done.losses[0] - 0.2  # something was learned
    scores = net(x_test.double())
    assert done.evaluation["val_loss"] == pytest.approx(F.cross_entropy(scores, y_test).item(), rel=1e-6)
    assert done.evaluation["val_accuracy"] == pytest.approx(float((scores.argmax(1) == y_test).double().mean()))


@pytest.mark.parametrize(("precision", "dtype", "autocast", "rtol"), [
    ("32-true", torch.float32, None, 1e-5),
    ("bf16-mixed", torch.float32, torch.bfloat16, 1e-5),
    ("bf16-true", torch.bfloat16, None, 2e-2),
])  # fmt: skip
def test_precisions(precision, dtype, autocast, rtol, tmp_path):
    done = fit(World(), tmp_path, f"train.precision={precision}")
    net = plain_net(done.start, dtype)
    x, y, *_ = read_digits()
    losses, _ = plain_loop(
        net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), x.to(dtype), y, STEPS, autocast=autocast
    )
    assert largest_difference(done.losses, losses) < rtol
    assert_same_net(net, done.weights, rtol)
    exact = fit(World(), tmp_path / "exact", "train.precision=64-true")
    apart = largest_difference(done.losses, exact.losses)
    assert apart < 0.05
    assert (apart > 1e-4) == ("16" in precision)  # sixteen bits were really used


def test_16_true_with_a_large_enough_eps(tmp_path):
    more = ("optim.name=adam", "optim.lr=0.003", "optim.args={eps: 0.0001}")
    done = fit(World(), tmp_path, "train.precision=16-true", *more)
    net = plain_net(done.start, torch.float16)
    x, y, *_ = read_digits()
    losses, _ = plain_loop(net, torch.optim.Adam(net.parameters(), lr=0.003, eps=1e-4, fused=True), x.half(), y, STEPS)
    assert all(weight.dtype == torch.float16 for weight in done.weights.values())
    assert largest_difference(done.losses, losses) < 2e-2
    assert done.losses[-1] < done.losses[0] - 0.2


@pytest.mark.parametrize("fused", ["true", "false"])
@pytest.mark.parametrize(("name", "lr", "kind"), [("sgd", 1e-4, torch.optim.SGD), ("adam", 1.0, torch.optim.Adam)])
def test_16_mixed_scales_skips_and_clips_as_gradscaler_does(name, lr, kind, fused, tmp_path):
    done = fit(
        World(),
        tmp_path,
        *("train.precision=16-mixed", "train.clip={norm: 2.0}", "train.batch_size=32", "train.steps=24"),
        *("loss=mse", "metrics=[mae]", "data.name=small_parts:steep", "model.args.hidden=[16]"),
        *(f"optim.name={name}", f"optim.lr={lr}", f"optim.args={{fused: {fused}}}"),
    )
    net = plain_net(done.start)
    optimizer, scaler = kind(net.parameters(), lr=lr), torch.amp.GradScaler("cpu")
    x, y = steep()["train"]
    losses, norms, scales, skipped = [], [], [], 0
    for ids in batches(len(x), 32, 24):
        with torch.autocast("cpu", torch.float16):
            loss = F.mse_loss(net(x[ids]).squeeze(1).float(), y[ids])
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norms.append(float(nn.utils.clip_grad_norm_(net.parameters(), 2.0)))
        scales.append(scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()
        skipped += scaler.get_scale() < scales[-1]
        losses.append(float(loss.detach()))

    assert 0 < skipped < 20
    assert done.skipped == skipped == sum(line["skipped"] for line in done.steps())
    assert [line["scale"] for line in done.steps()] == scales
    assert largest_difference(done.losses, losses) < 1e-3
    made = [i for i, line in enumerate(done.steps()) if not line["skipped"]]
    logged = [line["grad_norm"] for line in done.steps()]
    assert largest_difference([logged[i] for i in made], [norms[i] for i in made]) < 1e-2
    assert all(done.steps()[i]["grad_norm_clipped"] == pytest.approx(2.0, rel=1e-4) for i in made)  # after unscaling
    assert_same_net(net, done.weights, 1e-3)


def test_clipping_by_norm(tmp_path):
    done = fit(World(), tmp_path, "train.clip={norm: 0.2}", "train.precision=64-true")
    net = plain_net(done.start, torch.float64)
    x, y, *_ = read_digits()
    losses, norms = plain_loop(
        net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), x.double(), y, STEPS, clip=0.2
    )
    assert min(norms) < 0.2 < max(norms)  # both cases occur
    assert largest_difference(done.losses, losses) < 1e-9
    assert largest_difference([line["grad_norm"] for line in done.steps()], norms) < 1e-6
    clipped = [line["grad_norm_clipped"] for line in done.steps()]
    assert clipped == pytest.approx([min(norm, 0.2) for norm in norms], rel=1e-5)


def test_clipping_by_value_and_by_both(tmp_path):
    overrides = ("train.precision=64-true", "train.steps=1", "optim.lr=1", "optim.args={}")
    x, y, *_ = read_digits()
    for clip in ({"value": 0.01}, {"norm": 0.1, "value": 0.01}):
        done = fit(World(), tmp_path / str(len(clip)), *overrides, train={"batch_size": BATCH, "clip": clip})
        net = plain_net(done.start, torch.float64)
        before = [parameter.detach().clone() for parameter in net.parameters()]
        plain_loop(net, torch.optim.SGD(net.parameters(), lr=0.0), x.double(), y, 1)
        if "norm" in clip:
            norm = float(nn.utils.clip_grad_norm_(net.parameters(), 0.1))
            assert norm > 0.1
        else:
            norm = float(torch.cat([p.grad.flatten() for p in net.parameters()]).norm())
        nn.utils.clip_grad_value_(net.parameters(), 0.01)
        clipped = float(torch.cat([p.grad.flatten() for p in net.parameters()]).norm())
        line = done.steps()[0]
        assert clipped < norm
        assert (line["grad_norm"], line["grad_norm_clipped"]) == pytest.approx((norm, clipped), rel=1e-5)
        for weight, start, parameter in zip(done.weights.values(), before, net.parameters(), strict=True):
            assert torch.allclose(start - weight, parameter.grad, rtol=0, atol=1e-10)


def test_a_loss_and_a_metric_of_ones_own(tmp_path):
    done = fit(World(), tmp_path, "loss=small_parts:half_of_squares", "metrics=[small_parts:off_by, top5]")
    net = plain_net(done.start)
    x, y, x_test, y_test = read_digits()
    losses, _ = plain_loop(
        net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), x, y, STEPS,
        loss=lambda output, target: 0.5 * (output - F.one_hot(target, 10)).square().mean(),
    )  # fmt: skip
    assert largest_difference(done.losses, losses) < 1e-5
    scores = net(x_test)
    off = float((scores.argmax(1) - y_test).abs().double().mean())
    assert done.evaluation["val_off_by"] == pytest.approx(off, rel=1e-3)
    top5 = float((scores.topk(5).indices == y_test[:, None]).any(1).double().mean())
    assert done.evaluation["val_top5"] == pytest.approx(top5, abs=0.003)
