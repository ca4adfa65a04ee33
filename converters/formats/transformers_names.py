"""The names that transformers gives to a tower (CLIP, SigLIP) and a Llama-family decoder, wherever they stand."""

from converters.rules import Rule
from trainer.model import LanguageConfig, VisionConfig


def tower_rules(prefix: str, config: VisionConfig) -> list[Rule]:
    """Return the rules of a `CLIPVisionTransformer` or `SiglipVisionTransformer` whose names begin with `prefix`."""
    layer, ours = prefix + "encoder.layers.{}.", "vision.layers.{}."
    rules = [
        Rule(prefix + "embeddings.patch_embedding.weight", "vision.patch_embedding.weight"),
        Rule(prefix + "embeddings.position_embedding.weight", "vision.position_embedding.weight"),
        # 0, 1, 2, ...: saved by transformers up to 4.30, computed since.
        Rule(prefix + "embeddings.position_ids", None),
    ]
    for part in ("weight", "bias"):
        rules += [
            Rule(layer + f"layer_norm1.{part}", ours + f"norm1.{part}"),
            Rule(layer + f"layer_norm2.{part}", ours + f"norm2.{part}"),
            Rule(layer + f"self_attn.q_proj.{part}", ours + f"attention.q.{part}"),
            Rule(layer + f"self_attn.k_proj.{part}", ours + f"attention.k.{part}"),
            Rule(layer + f"self_attn.v_proj.{part}", ours + f"attention.v.{part}"),
            Rule(layer + f"self_attn.out_proj.{part}", ours + f"attention.o.{part}"),
            Rule(layer + f"mlp.fc1.{part}", ours + f"mlp.up.{part}"),
            Rule(layer + f"mlp.fc2.{part}", ours + f"mlp.down.{part}"),
            Rule(prefix + f"post_layernorm.{part}", f"vision.post_norm.{part}"),
        ]
    if config.kind == "siglip":
        # The head pools a picture to one vector, which LLaVA has no use for.
        bias = Rule(prefix + "embeddings.patch_embedding.bias", "vision.patch_embedding.bias")
        return [*rules, bias, Rule(prefix + "head.*", None)]
    before = [Rule(prefix + f"pre_layrnorm.{part}", f"vision.pre_norm.{part}") for part in ("weight", "bias")]
    return [*rules, *before, Rule(prefix + "embeddings.class_embedding", "vision.class_embedding")]


def decoder_rules(prefix: str, config: LanguageConfig) -> list[Rule]:
    """Return the rules of a `LlamaForCausalLM`, or a Mistral, Qwen2 or Qwen3, whose names begin with `prefix`.

    With tied embeddings an output layer is a copy of the embedding table; some files hold it, and it is dropped.
    """
    layer, ours = prefix + "model.layers.{}.", "language.layers.{}."
    rules = [
        Rule(prefix + "model.embed_tokens.weight", "language.embed.weight"),
        Rule(layer + "input_layernorm.weight", ours + "attention_norm.weight"),
        Rule(layer + "post_attention_layernorm.weight", ours + "mlp_norm.weight"),
        Rule(layer + "mlp.gate_proj.weight", ours + "mlp.gate.weight"),
        Rule(layer + "mlp.up_proj.weight", ours + "mlp.up.weight"),
        Rule(layer + "mlp.down_proj.weight", ours + "mlp.down.weight"),
        # Computed from the config; saved by transformers up to 4.31.
        Rule(layer + "self_attn.rotary_emb.inv_freq", None),
        Rule(prefix + "model.norm.weight", "language.norm.weight"),
        Rule(prefix + "lm_head.weight", None if config.tie_embeddings else "language.lm_head.weight"),
    ]
    for part in ("weight", "bias"):
        for name in "qkvo":
            rules.append(Rule(layer + f"self_attn.{name}_proj.{part}", ours + f"attention.{name}.{part}"))
    for name in "qk" if config.has_qk_norm else "":
        rules.append(Rule(layer + f"self_attn.{name}_norm.weight", ours + f"attention.{name}_norm.weight"))
    return rules
