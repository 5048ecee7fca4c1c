//! InternLM2 and 2.5 (arXiv 2403.17297): Llama under other names, with q, k and v in one matrix, group by group.

use super::settings::{Fields, Metadata};
use super::{Family, InFolder, InGguf, StoredAs, llama};
use crate::config::part::{LayerPart, ModelPart};
use crate::config::{ModelConfig, RopePairing};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    folder: InFolder {
        model_type: "internlm2",
        classes: &["internlm2for"],
        read: read_folder,
        names: names_in_folder,
    },
    gguf: Some(InGguf { architecture: "internlm2", read: read_gguf, ..llama::IN_GGUF }),
};

fn read_folder(f: &Fields) -> Result<ModelConfig> {
    let bias = f.flag("bias")?.unwrap_or(true);
    Ok(ModelConfig { attention_bias: bias, attention_out_bias: bias, ..llama::read_plain(f, 1e-6)? })
}

fn names_in_folder(part: ModelPart) -> StoredAs {
    let (l, part) = match part {
        ModelPart::Embed => return StoredAs::One("model.tok_embeddings".into()),
        ModelPart::FinalNorm => return StoredAs::One("model.norm".into()),
        ModelPart::Output => return StoredAs::One("output".into()),
        ModelPart::Layer(l, part) => (l, part),
    };
    let name = |stem: &str| format!("model.layers.{l}.{stem}");
    match part {
        LayerPart::AttnNorm => StoredAs::One(name("attention_norm")),
        LayerPart::Qkv => StoredAs::GroupByGroup(name("attention.wqkv")),
        LayerPart::Out => StoredAs::One(name("attention.wo")),
        LayerPart::FfnNorm => StoredAs::One(name("ffn_norm")),
        LayerPart::Up => StoredAs::Each(["feed_forward.w1", "feed_forward.w3"].map(name).to_vec()),
        LayerPart::Down => StoredAs::One(name("feed_forward.w2")),
        LayerPart::QNorm | LayerPart::KNorm | LayerPart::AttnPostNorm | LayerPart::FfnPostNorm => {
            StoredAs::Nowhere
        }
    }
}

fn read_gguf(m: &Metadata) -> Result<ModelConfig> {
    // Rows of q and k are permuted to match.
    llama::read_plain_gguf(m, RopePairing::Interleaved)
}
