"""A Segment Anything of a few thousand random weights, in transformers' layout."""

from pathlib import Path

import torch


def sam(folder: Path) -> Path:
    """Write one whose encoder, random as it is, says where a lesion is. Returns the folder."""
    from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

    size = {"hidden_size": 16, "image_size": 64, "patch_size": 8}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 32}
    encoder = {"output_channels": 16, "window_size": 4, "global_attn_indexes": [0], "num_pos_feats": 8}
    config = SamConfig(
        vision_config=SamVisionConfig(**size, **layers, **encoder).to_dict(),
        prompt_encoder_config=SamPromptEncoderConfig(**size, mask_input_channels=4).to_dict(),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=16, **layers, iou_head_hidden_dim=16, iou_head_depth=2
        ).to_dict(),
    )
    model = SamModel(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2 and "pos_embed" in name:
                weight.normal_(0, 0.5, generator=generator)
            elif weight.ndim >= 2:
                torch.nn.init.kaiming_uniform_(weight, a=5**0.5, generator=generator)
    model.save_pretrained(folder, safe_serialization=True)
    return folder
