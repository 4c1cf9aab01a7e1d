"""A tiny size for the benchmarks: the sizes' own FLUX builder and inputs."""

from elastic_dit.bench import sizes


def small_flux(branches: int = 1, heads: int = 2) -> sizes.Size:
    build = sizes.flux_builder(
        in_channels=8,
        attention_head_dim=16,
        num_attention_heads=heads,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    return sizes.Size("a tiny FLUX", 4, branches, blocks=6, tokens=16, text=5, build=build, inputs=sizes.flux_inputs)
