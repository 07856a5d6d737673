"""The LDM layout: U-Net and first stage of Rombach et al. 2022, with Graikos et al.'s conditioner.

One Lightning checkpoint holds them all: `model.diffusion_model.*`, `first_stage_model.*`,
`cond_stage_model.*`, and the tables of the noise schedule.
"""

from ssl_diffusion.weights.naming import POINTWISE, Naming

UNET = Naming(
    prefix="model.diffusion_model.",
    rules=(
        (r"^time_embed/linear_1", "time_embed/0"),
        (r"^time_embed/linear_2", "time_embed/2"),
        (r"^out_norm", "out/0"),
        (r"^out_conv", "out/2"),
        (r"^(input_blocks|output_blocks)_(\d+)_(\d+)", r"\1/\2/\3"),
        (r"^middle_block_(\d)", r"middle_block/\1"),
        (r"/in_norm/", "/in_layers/0/"),
        (r"/in_conv/", "/in_layers/2/"),
        (r"/out_norm/", "/out_layers/0/"),
        (r"/out_conv/", "/out_layers/3/"),
        (r"/emb/", "/emb_layers/1/"),
        (r"/skip/", "/skip_connection/"),
        (r"transformer_blocks_(\d+)", r"transformer_blocks/\1"),
        (r"/to_out/", "/to_out/0/"),
        (r"/ff/proj/", "/ff/net/0/proj/"),
        (r"/ff/out/", "/ff/net/2/"),
    ),
    transforms=((r"/(skip|proj_in|proj_out)/kernel$", POINTWISE),),
)
