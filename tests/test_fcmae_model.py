from __future__ import annotations

import pytest
import torch

from backbones.convnext import build_convnext
from fcmae.masking import random_mask
from fcmae.model import FCMAE, patchify, unpatchify


def small_fcmae(**options):
    torch.manual_seed(0)
    in_chans = options.pop("in_chans", 3)
    encoder = build_convnext("convnextv2_atto", in_chans=in_chans)
    return FCMAE(encoder, decoder_dim=64, **options)


def naive_loss(images, prediction, mask, normalise):
    """The paper's loss, patch by patch and pixel by pixel's formula."""
    losses = []
    for b, row, column in mask.nonzero().tolist():
        patch = images[b, :, row * 32 : row * 32 + 32, column * 32 : column * 32 + 32]
        target = patch.permute(1, 2, 0).flatten()  # row, column, channel
        if normalise:
            target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
        losses.append((prediction[b, :, row, column] - target).pow(2).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("in_chans", [1, 3, 5])
def test_loss_equals_the_papers_by_a_naive_loop(normalise, in_chans):
    model = small_fcmae(norm_pix_loss=normalise, in_chans=in_chans).double()
    images = torch.randn(2, in_chans, 64, 96, dtype=torch.float64)
    output = model(images, random_mask(2, (2, 3), 0.6))
    expected = naive_loss(images, output.prediction, output.mask, normalise)
    assert torch.allclose(output.loss, expected, rtol=1e-12)


def test_patchify_orders_values_by_row_column_channel_and_inverts():
    images = torch.arange(2 * 3 * 64 * 96, dtype=torch.float64).view(2, 3, 64, 96)
    patches = patchify(images)
    assert patches.shape == (2, 3072, 2, 3)
    assert patches[1, (5 * 32 + 7) * 3 + 2, 1, 2] == images[1, 2, 32 + 5, 64 + 7]
    assert torch.equal(unpatchify(patches), images)


def test_loss_ignores_predictions_of_visible_patches():
    model = small_fcmae()
    images, mask = torch.randn(1, 3, 96, 96), random_mask(1, (3, 3), 0.6)
    prediction = torch.randn(1, 3072, 3, 3)
    changed = torch.where(mask.unsqueeze(1), prediction, prediction + 100)
    assert torch.equal(
        model.reconstruction_loss(images, prediction, mask),
        model.reconstruction_loss(images, changed, mask),
    )


def test_perfect_prediction_gives_no_loss_and_the_image_back():
    model = small_fcmae()
    images, mask = torch.randn(2, 3, 64, 64), random_mask(2, (2, 2), 0.6)
    target, _, _ = model.targets(images)
    assert model.reconstruction_loss(images, target, mask) == 0
    assert torch.allclose(model.reconstruct(images, mask, target), images, atol=1e-5)


def test_reconstruction_keeps_visible_pixels():
    model = small_fcmae()
    images, mask = torch.randn(1, 3, 64, 96), random_mask(1, (2, 3), 0.6)
    result = model.reconstruct(images, mask, model(images, mask).prediction)
    for _, row, column in (~mask).nonzero().tolist():
        window = (..., slice(row * 32, row * 32 + 32), slice(column * 32, column * 32 + 32))
        assert torch.allclose(result[window], images[window], atol=1e-5)
    assert not torch.allclose(result, images, atol=0.1)


def test_packed_and_masked_dense_give_the_same_loss_and_gradients():
    images, mask = torch.randn(2, 3, 96, 64, dtype=torch.float64), random_mask(2, (3, 2), 0.6)
    results = []
    for mode in ("packed", "masked-dense"):
        model = small_fcmae(encoder_mode=mode).double()
        loss = model(images, mask).loss
        loss.backward()
        results.append((loss, {n: p.grad for n, p in model.named_parameters()}))
    (packed, packed_grads), (dense, dense_grads) = results
    assert torch.allclose(packed, dense, rtol=1e-12)
    for name, grad in dense_grads.items():
        assert torch.allclose(packed_grads[name], grad, rtol=1e-9, atol=1e-12), name


def test_every_parameter_is_trained():
    model = small_fcmae()
    for name, parameter in model.named_parameters():  # GRN's gradient vanishes where gamma is 0
        if "grn" in name:
            torch.nn.init.normal_(parameter)
    model(torch.randn(2, 3, 64, 64)).loss.backward()
    untrained = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert untrained == []


def test_parameter_names_are_the_authors():
    names = {name for name, _ in small_fcmae().named_parameters()}
    assert {"mask_token", "proj.weight", "pred.bias", "decoder.0.grn.gamma"} <= names
    assert "encoder.stages.2.5.dwconv.weight" in names
    assert all(
        n.split(".")[0] in ("encoder", "proj", "mask_token", "decoder", "pred") for n in names
    )


def test_encoder_weights_start_with_the_small_standard_deviation():
    model = small_fcmae()
    for name in ("encoder.stages.2.0.pwconv1.weight", "decoder.0.pwconv1.weight", "pred.weight"):
        assert abs(model.get_parameter(name).std().item() - 0.02) < 0.002, name


def test_mask_is_drawn_from_the_generator_when_none_is_given():
    model, images = small_fcmae(), torch.randn(2, 3, 64, 96)
    first = model(images, generator=torch.Generator().manual_seed(1)).mask
    again = model(images, generator=torch.Generator().manual_seed(1)).mask
    assert torch.equal(first, again)
    assert (~first).flatten(1).sum(1).tolist() == [2, 2]  # int(6 * 0.4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_mode": "sparse"}, "encoder mode is 'sparse'; allowed: packed, masked-dense"),
        ({"mask_ratio": 1.0}, r"mask ratio is 1.0; it must be in \[0, 1\)"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small_fcmae(**options)


def test_image_size_that_is_no_multiple_of_32_is_refused():
    with pytest.raises(ValueError, match=r"width is 100.*use 96 or 128"):
        small_fcmae()(torch.randn(1, 3, 64, 100))


def test_a_few_steps_on_one_batch_lower_the_loss():
    model = small_fcmae()
    images, mask = torch.randn(2, 3, 64, 64).cumsum(-1) / 8, random_mask(2, (2, 2), 0.6)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(25):
        loss = model(images, mask).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_predicting_removed_patches_alone_changes_neither_loss_nor_gradients():
    """Against the decoder's 1x1 convolution over the whole map and the loss over all patches."""
    torch.manual_seed(0)
    model = FCMAE(build_convnext("convnextv2_atto"), decoder_dim=32).double()
    for name, parameter in model.named_parameters():
        if "grn" in name:
            torch.nn.init.normal_(parameter)
    images, mask = torch.randn(2, 3, 96, 64).double(), random_mask(2, (3, 2), 0.6)
    output = model(images, mask)
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    x = model.proj(model.forward_encoder(images, mask)["stage4"])
    x = torch.where(mask.unsqueeze(1), model.mask_token, x)
    whole = model.pred(model.decoder(x))
    target, _, _ = model.targets(images)
    ((whole - target).square().mean(1) * mask).sum().div(mask.sum()).backward()
    shown = mask.unsqueeze(1).expand_as(whole)
    torch.testing.assert_close(output.prediction[shown], whole[shown])
    assert (output.prediction[~shown] == 0).all()
    for name, expected in model.named_parameters():
        if expected.grad is not None:
            torch.testing.assert_close(gradients[name], expected.grad)


@pytest.mark.filterwarnings("error")
def test_images_without_a_removed_patch_have_no_loss_and_no_warning():
    loss = small_fcmae()(torch.randn(2, 3, 64, 64), torch.zeros(2, 2, 2, dtype=torch.bool)).loss
    assert loss == 0
    loss.backward()
