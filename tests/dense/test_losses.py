import torch

from capwright.dense.losses import silog_loss


def reference(
    log_pred: torch.Tensor, true: torch.Tensor, valid: torch.Tensor, weight: float
) -> torch.Tensor:
    """Eigen's double sum, written out: mean of squares less the weighted mean of all products."""
    pixels = zip(log_pred.ravel(), true.ravel(), valid.ravel(), strict=True)
    d = [a - b.log() for a, b, known in pixels if known]
    squares = sum(a * a for a in d) / len(d)
    products = sum(a * b for a in d for b in d) / len(d) ** 2
    return (squares - weight * products + 1e-6).sqrt()


def example() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    log_pred = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    true = torch.rand(2, 3, 4, dtype=torch.float64) * 5 + 0.1
    true[0, 0] = 0
    return log_pred, true


def test_loss_and_gradient_equal_a_plain_reference_in_float64() -> None:
    log_pred, true = example()
    valid = torch.rand(2, 3, 4) < 0.7
    for weight in (0.0, 0.5, 1.0):
        loss = silog_loss(log_pred, true, weight=weight, valid_BHW=valid)
        wanted = reference(log_pred, true, valid & (true > 0), weight)
        torch.testing.assert_close(loss, wanted)
        (gradient,) = torch.autograd.grad(loss, log_pred)
        (wanted_gradient,) = torch.autograd.grad(wanted, log_pred)
        torch.testing.assert_close(gradient, wanted_gradient)
        assert not gradient[true == 0].any()


def test_the_gradient_agrees_with_finite_differences() -> None:
    log_pred, true = example()
    assert torch.autograd.gradcheck(lambda x: silog_loss(x, true), (log_pred,))


def test_a_common_factor_costs_less_than_a_varying_one() -> None:
    _, true = example()
    known = true.clamp_min(0.1)
    common = silog_loss(known.log() + 0.5, known)
    sign = torch.ones_like(known)
    sign.view(-1)[::2] = -1
    varying = silog_loss(known.log() + 0.5 * sign, known)
    assert common < 0.75 * varying
    assert silog_loss(known.log() + 0.5, known, weight=1.0) < 2e-3


def test_a_perfect_prediction_and_no_pixel_have_finite_gradients() -> None:
    true = torch.full((1, 2, 2), 3.0)
    perfect = true.log().requires_grad_()
    silog_loss(perfect, true).backward()
    assert torch.isfinite(perfect.grad).all()

    nothing = torch.zeros(1, 2, 2, requires_grad=True)
    loss = silog_loss(nothing, torch.zeros(1, 2, 2))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(nothing.grad, torch.zeros(1, 2, 2))
