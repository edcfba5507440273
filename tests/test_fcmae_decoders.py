"""Decoders, mask tokens and larger patches against loops and by what may reach what."""

from __future__ import annotations

import json
import math

import pytest
import torch
import yaml
from safetensors import safe_open

from backbones.convnext import STAGES, ConvNeXt, Size
from backbones.normalization import GRNOptions
from fcmae.decoders import DECODERS, Transformer
from fcmae.mask_token import MaskTokenEncoder
from fcmae.masking import draw_mask, grid_size, upsample_mask
from fcmae.model import FCMAE, MODES
from fcmae.pretrain import pretrain
from fcmae.pretrain_options import PretrainOptions

SMALL = Size((8, 8, 16, 16), (1, 1, 1, 1), 2)


def small_fcmae(seed=0, **options) -> FCMAE:
    torch.manual_seed(seed)
    options = {"decoder_dim": 32, **options}
    model = FCMAE(ConvNeXt(SMALL), **options).double()
    for name, parameter in model.named_parameters():
        if "grn" in name:
            torch.nn.init.normal_(parameter)
    return model


def example():
    torch.manual_seed(3)
    return torch.randn(2, 3, 64, 96, dtype=torch.float64), draw_mask(2, (64, 96), 0.5)


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_learns_with_every_parameter_and_its_gradient_is_right(decoder):
    model, (images, mask) = small_fcmae(decoder=decoder), example()
    output = model(images, mask)
    assert output.prediction.shape == (2, 32 * 32 * 3, 2, 3)
    output.loss.backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []
    # one parameter of each part, by a finite difference
    for name in ("proj.weight", "pred.bias", "mask_token"):
        parameter = model.get_parameter(name)
        position = int(parameter.grad.flatten().abs().argmax())
        losses = []
        for step in (1e-3, -2e-3):
            with torch.no_grad():
                parameter.view(-1)[position] += step
                losses.append(model(images, mask).loss.item())
        expected = (losses[0] - losses[1]) / 2e-3
        assert parameter.grad.flatten()[position].item() == pytest.approx(expected, rel=1e-3), name


@pytest.mark.parametrize("decoder", DECODERS)
def test_packed_equals_masked_dense_under_every_decoder(decoder):
    images, mask = example()
    results = []
    for mode in ("packed", "masked-dense"):
        model = small_fcmae(decoder=decoder, encoder_mode=mode)
        loss = model(images, mask).loss
        loss.backward()
        results.append((loss, {n: p.grad for n, p in model.named_parameters()}))
    torch.testing.assert_close(*(loss for loss, _ in results), rtol=1e-12, atol=0)
    for name, gradient in results[1][1].items():
        torch.testing.assert_close(results[0][1][name], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("decoder", DECODERS)
def test_removed_pixels_change_no_prediction(decoder, mode):
    model, (images, mask) = small_fcmae(decoder=decoder, encoder_mode=mode), example()
    other = torch.where(
        upsample_mask(mask, 32).unsqueeze(1), 100 * torch.randn_like(images), images
    )
    with torch.no_grad():
        assert torch.equal(model(images, mask).prediction, model(other, mask).prediction)


def test_skips_bring_the_early_stages_to_the_prediction():
    images, mask = example()
    for decoder, reached in (("unet", False), ("unet-skips", True)):
        model = small_fcmae(decoder=decoder)
        features = model.forward_encoder(images, mask)
        assert set(features) == (set(STAGES) if reached else {"stage4"})
        before = model.forward_decoder(features, mask)
        for name in set(features) - {"stage4"}:
            changed = {**features, name: features[name] + 1.0}
            after = model.forward_decoder(changed, mask)
            assert not torch.allclose(after, before)
            # what stands at removed sites of a skip is not used
            noise = upsample_mask(mask, features[name].shape[-1] // 3).unsqueeze(1) * 9.0
            same = model.forward_decoder({**features, name: features[name] + noise}, mask)
            assert torch.equal(same, before)


def test_a_unets_prediction_is_an_image_in_the_order_of_the_targets():
    """Its 1x1 prediction at 1/4 gives the 4x4 pixels at that place."""
    model, (images, mask) = small_fcmae(decoder="unet"), example()
    seen = []
    model.pred.register_forward_hook(lambda module, inputs, output: seen.append(output))
    prediction = model(images, mask).prediction
    (small,) = seen
    assert small.shape == (2, 4 * 4 * 3, 16, 24)
    for b, c, y, x in ((0, 0, 0, 0), (1, 2, 33, 95), (0, 1, 63, 40)):
        patch = prediction[b, :, y // 32, x // 32].view(32, 32, 3)
        cell = small[b, :, y // 4, x // 4].view(4, 4, 3)
        assert patch[y % 32, x % 32, c] == cell[y % 4, x % 4, c]


def naive_attention_block(block, tokens):
    """Pre-norm attention and MLP of one sequence ``[L, C]``, head by head."""
    heads, c = block.attn.num_heads, tokens.shape[1]
    q, k, v = block.attn.qkv(block.norm1(tokens)).split(c, dim=1)
    outputs = []
    for h in range(heads):
        part = slice(h * c // heads, (h + 1) * c // heads)
        scores = q[:, part] @ k[:, part].T / math.sqrt(c / heads)
        outputs.append(scores.softmax(1) @ v[:, part])
    tokens = tokens + block.attn.proj(torch.cat(outputs, 1))
    hidden = block.mlp.fc1(block.norm2(tokens))
    return tokens + block.mlp.fc2(torch.nn.functional.gelu(hidden))


def test_transformer_is_attention_over_all_sites_with_sine_cosine_positions():
    torch.manual_seed(0)
    decoder = Transformer(64, 2).double()
    x = torch.randn(2, 64, 2, 3, dtype=torch.float64)
    positions = torch.zeros(2, 3, 64, dtype=torch.float64)
    for row in range(2):
        for column in range(3):
            for axis, place in enumerate((row, column)):
                for i in range(16):
                    angle = place / 10000 ** (i / 16)
                    positions[row, column, axis * 16 + i] = math.sin(angle)
                    positions[row, column, 32 + axis * 16 + i] = math.cos(angle)
    expected = []
    for image in x:
        tokens = image.permute(1, 2, 0).reshape(6, 64) + positions.view(6, 64)
        for block in decoder.blocks:
            tokens = naive_attention_block(block, tokens)
        expected.append(decoder.norm(tokens).T.view(64, 2, 3))
    torch.testing.assert_close(decoder(x), torch.stack(expected), rtol=1e-5, atol=1e-6)


def test_mask_token_encoder_is_the_plain_encoder_on_a_map_with_the_token_pasted_in():
    torch.manual_seed(0)
    encoder, (images, mask) = ConvNeXt(SMALL).double(), example()
    token = torch.nn.Parameter(torch.randn(1, 8, 1, 1, dtype=torch.float64))
    x = encoder.downsample_layers[0](images).clone()
    for b, row, column in mask.nonzero().tolist():
        x[b, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = token.data[0]
    for stage in range(4):
        x = encoder.stages[stage](encoder.downsample_layers[stage](x) if stage else x)
    found = MaskTokenEncoder(encoder, token).features(images, mask, STAGES)
    torch.testing.assert_close(found["stage4"], x, rtol=1e-12, atol=1e-12)
    nothing = torch.zeros_like(mask)
    whole = MaskTokenEncoder(encoder, token).features(images, nothing, STAGES)
    for name, plain in encoder.forward_features(images).items():
        torch.testing.assert_close(whole[name], plain, rtol=1e-12, atol=1e-12)


def test_with_mask_tokens_in_the_encoder_the_decoder_has_none():
    model, (images, mask) = small_fcmae(encoder_mode="mask-token", decoder="unet-skips"), example()
    names = {name for name, _ in model.named_parameters()}
    assert "input_token" in names
    assert not any("mask_token" in name for name in names)
    model(images, mask).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize(("patch", "size"), [(32, (64, 96)), (64, (128, 192)), (96, (96, 192))])
def test_patches_are_removed_whole_and_as_many_of_each_image(patch, size):
    mask = draw_mask(5, size, 0.5, patch)
    rows, columns, cells = size[0] // patch, size[1] // patch, patch // 32
    assert mask.shape == (5, size[0] // 32, size[1] // 32)
    for image in mask:
        blocks = [
            image[r * cells : (r + 1) * cells, c * cells : (c + 1) * cells]
            for r in range(rows)
            for c in range(columns)
        ]
        assert all(block.all() or not block.any() for block in blocks)
        assert sum(not block.any() for block in blocks) == rows * columns // 2


@pytest.mark.parametrize("patch", [16, 0, 48])
def test_patches_that_the_last_stage_cannot_tell_apart_are_refused(patch):
    with pytest.raises(ValueError, match=rf"patch size is {patch}.*multiple of 32"):
        grid_size(96, 96, patch)


def test_an_image_that_larger_patches_do_not_tile_is_refused():
    with pytest.raises(ValueError, match=r"height is 96 pixels; FCMAE masks 64x64.*use 64 or 128"):
        grid_size(96, 128, 64)


def test_a_run_with_every_choice_says_it_in_its_files(image_folder, tmp_path):
    run = tmp_path / "run"
    path = pretrain(
        PretrainOptions(
            **{"model": "convnextv2_atto", "data": str(image_folder), "output_dir": str(run)},
            **{"image_size": (64, 128), "patch_size": 64, "mask_ratio": 0.5, "max_steps": 2},
            **{"encoder": "mask-token", "decoder": "transformer", "decoder_dim": 32},
            **{"grn": GRNOptions(kind="cbam"), "batch_size": 2, "workers": 0, "log_every": 1},
            **{"device": "cpu", "trackers": (), "panel_every": 2},
        )
    )
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["patch_size"], config["decoder"]) == (64, "transformer")
    assert config["grn"]["kind"] == "cbam"
    with safe_open(path, "pt") as file:
        assert file.metadata()["grn"] == "cbam"
        assert "stages.0.0.grn.spatial.weight" in file.keys()  # noqa: SIM118
    assert len([json.loads(line) for line in (run / "metrics.json").open()]) >= 2


def test_options_that_do_not_go_together_are_named_at_once():
    with pytest.raises(ValueError, match="patch size is 16") as caught:
        PretrainOptions(model="", data="", output_dir="", decoder="transformer", decoder_dim=100,
                        patch_size=16, mask_ratio=2)  # fmt: skip
    assert "decoder_dim is 100; the transformer decoder needs a multiple of 32" in str(caught.value)
    assert "mask ratio is 2" in str(caught.value)
    with pytest.raises(ValueError, match="decoder is 'vit'; allowed: convnext, unet"):
        small_fcmae(decoder="vit")
