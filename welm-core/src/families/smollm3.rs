//! SmolLM3: Llama, whose every fourth layer is not turned by a rotary embedding (arXiv 2501.18795).

use super::settings::{Fields, Metadata};
use super::{Family, InFolder, InGguf, llama};
use crate::config::{ModelConfig, RopePairing};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    folder: InFolder {
        model_type: "smollm3",
        classes: &["smollm3for"],
        read: read_folder,
        names: llama::names_in_folder,
    },
    gguf: Some(InGguf { architecture: "smollm3", read: read_gguf, ..llama::IN_GGUF }),
};

const PERIOD: usize = 4;

fn read_folder(f: &Fields) -> Result<ModelConfig> {
    let sizes = f.sizes()?;
    let rope = llama::rope_of_folder(f, 2_000_000.0, &sizes)?;
    let attention_bias = f.flag("attention_bias")?.unwrap_or(false);
    let mut config = ModelConfig {
        attention_bias,
        attention_out_bias: attention_bias,
        mlp_bias: f.flag("mlp_bias")?.unwrap_or(false),
        tied_output: true,
        ..llama::read_with(f, sizes, rope, 1e-6)?
    };
    let n_layers = config.layers.len();
    let period = f.opt_size("no_rope_layer_interval")?.unwrap_or(PERIOD);
    for (layer, turned) in config.layers.iter_mut().zip(turned(f, n_layers, period)?) {
        layer.rope = turned.then_some(0);
    }
    let used = f.flag("use_sliding_window")?.unwrap_or(false);
    let window = f.opt_size("sliding_window")?.filter(|_| used);
    let unturned = |l: usize| window.is_some() && config.layers[l].rope.is_none();
    let sliding = f.sliding(n_layers, window, unturned)?;
    config.slide(sliding.as_ref());
    Ok(config)
}

/// Whether layers are turned: 1 in `no_rope_layers`, which may be longer than there are layers.
fn turned(f: &Fields, n_layers: usize, period: usize) -> Result<Vec<bool>> {
    const KEY: &str = "no_rope_layers";
    let Some(value) = f.find(KEY) else { return Ok((0..n_layers).map(|l| is_turned(l, period)).collect()) };
    let wrong = || f.wrong(KEY, &format!("0 or 1 for each of {n_layers} layers"), value);
    let list = value.as_array().filter(|list| list.len() >= n_layers).ok_or_else(wrong)?;
    let turned = list[..n_layers].iter().map(|x| x.as_u64().filter(|&x| x <= 1).map(|x| x == 1));
    turned.collect::<Option<_>>().ok_or_else(wrong)
}

fn is_turned(l: usize, period: usize) -> bool {
    period == 0 || !(l + 1).is_multiple_of(period)
}

fn read_gguf(m: &Metadata) -> Result<ModelConfig> {
    let mut config = llama::read_plain_gguf(m, RopePairing::Interleaved)?;
    // No key says which.
    for (l, layer) in config.layers.iter_mut().enumerate() {
        layer.rope = is_turned(l, PERIOD).then_some(0);
    }
    Ok(config)
}
