//! Planted faults: each one is put into a copy of the kernels' source, and a check of the other files must then fail.
//!
//! This tests the checks. It also tests that the emulator varies the order of threads enough, because a missing barrier
//! gives wrong numbers only in some orders. A fault that no check notices shows that a check, or the emulator, has to be
//! improved.

use std::any::Any;
use std::collections::HashMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Instant;

use welm_kernels::Device;
use welm_tests::emulator::compile::compile;
use welm_tests::emulator::{Emulator, Options};

use crate::{attention, gemm, norm, rope, sample};

const SM80: (u32, u32) = (8, 0);
const SM90: (u32, u32) = (9, 0);
/// Number of random orders of threads that are tried. One of them must show the fault.
const SEEDS: u64 = 8;

/// A change of the source, and the check that must notice it.
struct Fault {
    library: &'static str,
    capability: (u32, u32),
    /// Only kernels with one of these in their name are compiled, because compiling takes most of the time. An empty
    /// list means all. (Kernels of more than one line are always compiled.) If a check gets as far as launching another
    /// kernel, it has not noticed the fault.
    kernels: &'static [&'static str],
    check: fn(&Device),
    /// A file, a text that is in it once, and the text that replaces it.
    change: Option<(&'static str, &'static str, &'static str)>,
}

impl Fault {
    /// The message with which the check fails, and under which of the first `seeds` seeds.
    fn run(&self, seeds: u64) -> Option<(String, u64)> {
        let folder = tempfile::tempdir().unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for entry in fs::read_dir(root.join("../welm-kernels/cuda")).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
        let rewrite = |file: &str, change: &dyn Fn(String) -> String| {
            let path = folder.path().join(file);
            fs::write(&path, change(fs::read_to_string(&path).unwrap())).unwrap();
            path
        };
        if let Some((file, find, replace)) = self.change {
            rewrite(file, &|text| {
                let n = text.matches(find).count();
                assert_eq!(n, 1, "{file} has changed, so must the fault: {find:?} is there {n} times");
                text.replacen(find, replace, 1)
            });
        }
        let wanted = |line: &&str| {
            let one_line = line.starts_with("KERNEL(") && line.ends_with('}');
            !one_line || self.kernels.is_empty() || self.kernels.iter().any(|name| line.contains(name))
        };
        let keep = |text: String| text.lines().filter(wanted).flat_map(|line| [line, "\n"]).collect();
        let source = rewrite(&format!("{}.cu", self.library), &keep);
        let library = source.with_extension("so");
        // Optimised for a fast build, because little of it runs before the check fails.
        compile(&source, folder.path(), &root.join("emulator"), &library, "g").unwrap();

        let first = Options::default().seed;
        (first..first + seeds).find_map(|seed| {
            let libraries = HashMap::from([(self.library.to_owned(), library.clone())]);
            let options = Options { capability: self.capability, seed, libraries, ..Options::default() };
            let device = Device::with_driver(Emulator::new(options));
            let panic = catch_unwind(AssertUnwindSafe(|| (self.check)(&device))).err()?;
            let message = message(&*panic);
            assert!(!message.contains(&library.display().to_string()), "it does not load: {message}");
            // The check got as far as a kernel that was not compiled, so it has not noticed the fault.
            (!message.contains("no such kernel")).then_some((message, seed))
        })
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a text").to_owned()
}

/// Tests that pass if a check notices the fault; lines are `name, file, check, kernels, find => replace`.
macro_rules! faults {
    ($library:ident, $capability:ident: $(
        $name:ident, $file:literal, $check:path, $kernels:expr, $find:expr => $replace:expr;
    )*) => {$(
        #[test]
        fn $name() {
            let start = Instant::now();
            let fault = Fault {
                library: stringify!($library),
                capability: $capability,
                kernels: &$kernels,
                check: $check,
                change: Some(($file, $find, $replace)),
            };
            let Some((message, seed)) = fault.run(SEEDS) else {
                panic!("{} has not noticed {}", stringify!($check), stringify!($name));
            };
            println!(
                "{}: {}, seed {seed}, {:.1} s: {message}",
                stringify!($name),
                stringify!($check),
                start.elapsed().as_secs_f64(),
            );
        }
    )*};
}

/// Without a fault the checks pass.
#[test]
fn no_fault() {
    let hd80: &[_] = &["hd80"];
    let controls = [
        ("rope", SM80, &[][..], rope::check as fn(&Device)),
        ("attention_sm90", SM90, hd80, attention::prefill_windows),
    ];
    for (library, capability, kernels, check) in controls {
        let control = Fault { library, capability, kernels, check, change: None };
        assert_eq!(control.run(1), None, "{library} as it is");
    }
}

/// One product with all columns of V gives the same result as two.
#[test]
fn sm90_attention_whole_columns() {
    let (find, replace) = ("constexpr bool SPLIT_COLUMNS = true;", "constexpr bool SPLIT_COLUMNS = false;");
    let control = Fault {
        library: "attention_sm90",
        capability: SM90,
        kernels: &[],
        check: attention::prefill_lengths,
        change: Some(("attention_sm90.cu", find, replace)),
    };
    assert_eq!(control.run(1), None);
}

faults! {
    attention, SM80:
    attention_mask, "attention.cuh", attention::prefill_windows, ["hd80"],
        "key > seen[e / 2].last" => "key > seen[e / 2].last + 1";
    attention_window, "attention.cuh", attention::prefill_windows, ["hd80"],
        "pos - window + 1 : 0" => "pos - window : 0";
    attention_soft_cap_ignored, "attention.cuh", attention::prefill_capped, ["hd64"],
        "if (cap_c != 0.0f) {" => "if (false) {";
    attention_soft_cap_after_the_mask, "attention.cuh", attention::prefill_capped, ["hd64"],
        "s[j][e] = MASKED;" => "s[j][e] = cap_c != 0.0f ? -1.0f : MASKED;";
    attention_decode_soft_cap_ignored, "attention.cu", attention::decode_capped, ["hd64"],
        "step<HD, 1>(rows, q, k, k + TILE_BYTES, first, seen, masked, p.c, p.cap_c, lane);" =>
        "step<HD, 1>(rows, q, k, k + TILE_BYTES, first, seen, masked, p.c, 0.0f, lane);";
    attention_acc_not_rescaled, "attention.cuh", attention::prefill_windows, ["hd80"],
        "rows.acc[j][2 * h + 1] *= factor;" => "";
    attention_key_fragments, "attention.cuh", attention::prefill_windows, ["hd80"],
        "low[2] = {keys[0], keys[1]}, high[2] = {keys[2], keys[3]}" =>
        "low[2] = {keys[0], keys[2]}, high[2] = {keys[1], keys[3]}";
    attention_swizzle, "attention.cuh", attention::prefill_windows, ["hd80"],
        "tile + offset<HD>(row, i % PIECES)" => "tile + row * (HD * 2) + i % PIECES * 16";
    attention_slots_of_no_key, "attention.cuh", attention::prefill_windows, ["hd80"],
        "const bool inside = valid.first <= key && key <= valid.last;" => "const bool inside = true;";
    attention_prefill_barrier, "attention.cu", attention::prefill_windows, ["hd80"],
        "ptx::sync_block();  // this step" => "// this step";
    attention_prefill_table, "attention.cu", attention::prefill_lengths, ["hd64"],
        "used ? p.block_tables[tile.table_start + block]" =>
        "used ? p.block_tables[p.spans[max(p.tiles[2 * blockIdx.y], 1u) - 1].table_start + block]";
    attention_prefill_entries, "attention.cu", attention::prefill_far, ["hd64"],
        "if (index == first_step || index % 32 == 0) {" => "if (index == first_step) {";
    attention_prefill_kv_head, "attention.cu", attention::prefill_windows, ["hd80"],
        "kv_head = head / (p.n_heads / p.n_kv_heads)" => "kv_head = head % p.n_kv_heads";
    attention_prefill_padding, "attention.cu", attention::prefill_lengths, ["hd64", "hd80"],
        "if (head == p.n_heads - 1) zero_padding(" => "if (head == p.n_heads) zero_padding(";
    attention_decode_sync, "attention.cu", attention::decode, ["hd64"],
        "ptx::sync_warp();  // this slot" => "// this slot";
    attention_decode_wait, "attention.cu", attention::decode, ["hd64"],
        "ptx::cp_async_wait<STAGES - 2>();" => "ptx::cp_async_wait<STAGES - 1>();";
    attention_decode_table, "attention.cu", attention::decode, ["hd64"],
        "table_start = p.table_starts[row];" => "table_start = p.table_starts[row / 2 * 2];";
    attention_combine_too_few, "attention.cu", attention::decode, ["hd64"],
        "const uint32_t n = min(splits_of(seen_from(p.positions[row], p.window)), p.n_splits);" =>
        "const uint32_t n = max(splits_of(seen_from(p.positions[row], p.window)) - 1, 1u);";
    attention_combine_stale, "attention.cu", attention::decode, ["hd64"],
        "const uint32_t n = min(splits_of(seen_from(p.positions[row], p.window)), p.n_splits);" =>
        "const uint32_t n = p.n_splits;";
    attention_table_unchecked, "attention.cuh", attention::errors, ["hd64"],
        "return (uint64_t)table_start + last_key / BLOCK_KEYS < table_len;" => "return true;";
}

faults! {
    attention_sm90, SM90:
    sm90_attention_mask, "attention_sm90.cu", attention::prefill_windows, ["hd80"],
        "key > seen[e / 2].last" => "key > seen[e / 2].last + 1";
    sm90_attention_window_skipped, "attention_sm90.cu", attention::prefill_windows, ["hd80"],
        "seen_from(first_pos + 15, p.window).first" => "seen_from(first_pos, p.window).first";
    sm90_attention_soft_cap_ignored, "attention_sm90.cu", attention::prefill_capped, ["hd64"],
        "if (p.cap_c != 0.0f) {" => "if (false) {";
    sm90_attention_k_freed_early, "attention_sm90.cu", attention::prefill_far, ["hd64"],
        "    ptx::wgmma_wait<0>();
    release(&barriers.k_empty[0]);
" =>
        "    release(&barriers.k_empty[0]);
    ptx::wgmma_wait<0>();
";
    sm90_attention_v_freed_early, "attention_sm90.cu", attention::prefill_far, ["hd64"],
        "        ptx::wgmma_wait<0>();
        release(&barriers.v_empty[before]);
" =>
        "        release(&barriers.v_empty[before]);
        ptx::wgmma_wait<0>();
";
    sm90_attention_k_not_full, "attention_sm90.cu", attention::prefill_far, ["hd64"],
        "ptx::barrier_wait(&barriers.k_full[stage.index], stage.parity);" => "";
    sm90_attention_scores_early, "attention_sm90.cu", attention::prefill_windows, ["hd80"],
        "ptx::wgmma_wait<1>();" => "ptx::wgmma_wait<2>();";
    sm90_attention_p_overwritten, "attention_sm90.cu", attention::prefill_windows, ["hd80"],
        "        ptx::wgmma_wait<0>();
        release(&barriers.v_empty[before]);
" =>
        "        round_p(rounded, s);
        ptx::wgmma_wait<0>();
        release(&barriers.v_empty[before]);
";
    sm90_attention_slots_of_no_key, "attention_sm90.cu", attention::prefill_windows, ["hd80"],
        "valid ? rows[i] + (int)key : NOWHERE" => "rows[i] + (int)key";
    sm90_attention_bytes, "attention_sm90.cu", attention::prefill_windows, ["hd80"],
        "ptx::barrier_expect(full, S::TILE_BYTES / PRODUCERS);" => "ptx::barrier_expect(full, S::TILE_BYTES);";
    sm90_attention_share, "attention_sm90.cu", attention::prefill_windows, ["hd80"],
        "const uint32_t b = warp * SHARE + i, first" => "const uint32_t b = i, first";
    sm90_attention_other_columns, "attention_sm90.cu", attention::prefill_windows, ["hd80"],
        "block + (PIECE_BYTES >> 4)" => "block";
    sm90_attention_arrivals, "attention_sm90.cu", attention::prefill_far, ["hd64"],
        "ptx::barrier_init(&barriers.k_empty[i], warps);" => "ptx::barrier_init(&barriers.k_empty[i], warps - 1);";
}

faults! {
    gemm, SM80:
    gemm_few_sum_barrier, "gemm.cu", gemm::functions, ["w8a16"],
        "        *at = total;
    }
    ptx::sync_block();" =>
        "        *at = total;
    }";
    gemm_few_tail, "gemm.cu", gemm::shapes, ["w8a16"],
        "min(first_token + 8 * c + g, p.n - 1)" => "first_token + 8 * c + g";
    gemm_few_next_weights, "gemm.cu", gemm::long_segments, ["w8a16"],
        "load_w(i, i + DEPTH);" => "load_w(i, i + DEPTH - 1);";
    gemm_order_of_sums, "gemm.cu", gemm::few_and_tiles, ["w8a16"],
        "for (uint32_t s = 0; s < SEGMENTS; ++s) total += at[s * (TOKENS * PITCH)];" =>
        "for (uint32_t s = SEGMENTS; s-- > 0;) total += at[s * (TOKENS * PITCH)];";
    gemm_scale_row, "gemm.cu", gemm::few_and_tiles, ["w8a16"],
        "sum[2] = fmaf(scale_g8, d[2], sum[2]);" => "sum[2] = fmaf(scale_g, d[2], sum[2]);";
    gemm_tile_wait, "gemm.cu", gemm::few_and_tiles, ["w8a16"],
        "ptx::cp_async_wait<STAGES - 2>();" => "ptx::cp_async_wait<STAGES - 1>();";
    gemm_tile_barrier, "gemm.cu", gemm::few_and_tiles, ["w8a16"],
        "ptx::sync_block();  // this stage" => "// this stage";
    gemm_tile_x_lanes, "gemm.cu", gemm::few_and_tiles, ["w8a16"],
        "warp_token + lane % 8 + lane / 16 * 8;" => "warp_token + lane % 8 + lane / 8 % 2 * 8;";
    gemm_split_half_stage, "gemm.cu", gemm::split_along_k, ["w8a16"],
        "if (PART && index * GROUPS + group == n_groups) break;" => "";
    gemm_split_last_rows, "gemm.cu", gemm::split_along_k, ["w8a16"],
        "if (first_token + token >= p.n) break;" => "";
    gemm_split_order_of_sums, "gemm.cu", gemm::split_along_k, ["w8a16"],
        "total[j] += part[s][j];" => "total[j] += part[SEGMENTS - 1 - s][j];";
    // Without gates and ups a thread stores what it has added itself.
    gemm_split_sum_barrier, "gemm.cu", gemm::edges, ["w8a16"],
        "{total[0], total[1], total[2], total[3]};
    ptx::sync_block();" =>
        "{total[0], total[1], total[2], total[3]};";
    gemm_int8_scale_group, "gemm.cu", gemm::int8_activations, ["w8a8"],
        "(b_scales + (group * TOKENS + token) * 4)" => "(b_scales + ((group ^ 1) * TOKENS + token) * 4)";
    gemm_int8_scale_tail, "gemm.cu", gemm::int8_activations, ["w8a8"],
        "const bool inside = first_token + token < p.n;
                const float" =>
        "const bool inside = true;
                const float";
    gemm_bf16_fragments, "gemm.cuh", gemm::few_and_tiles, ["w8a16", "w16a16"],
        "                a[h][2] = words[h].y;
                a[h][1] = words[h].z;" =>
        "                a[h][1] = words[h].y;
                a[h][2] = words[h].z;";
    gemm_gate_and_up, "gemm.cuh", gemm::functions, ["w8a16"],
        "silu(x[0][j]) * x[1][j]" => "silu(x[1][j]) * x[0][j]";
    gemm_gelu_gate_and_up, "gemm.cuh", gemm::functions, ["w8a16"],
        "gelu_tanh(x[0][j]) * x[1][j]" => "gelu_tanh(x[1][j]) * x[0][j]";
    gemm_rotated_scale_row, "gemm.cuh", gemm::rotated_int8, ["r8a8"],
        "p.q_scale[tile.first_token + token + i * step]" => "p.q_scale[token + i * step]";
    gemm_store_unaligned, "gemm.cuh", gemm::edges, ["w8a16"],
        "const bool aligned = p.out_stride % 4 == 0;" => "const bool aligned = true;";
    gemm_store_last_columns, "gemm.cuh", gemm::edges, ["w8a16"],
        "if (cols == 4 && aligned) store_columns" => "if (aligned) store_columns";
    gemm_store_last_rows, "gemm.cuh", gemm::edges, ["w8a16"],
        "if (i * step < tile.n_tokens && token + i * step < n) store_four" =>
        "if (i * step < tile.n_tokens) store_four";
}

faults! {
    gemm_sm90, SM90:
    sm90_gemm_bytes, "gemm_sm90.cu", gemm::few_and_tiles, ["w8a16"],
        "OWN_STRIPS * (L::A_STRIP + L::SCALES_STRIP) + b_scale_bytes" => "OWN_STRIPS * L::A_STRIP + b_scale_bytes";
    sm90_gemm_every_lane, "gemm_sm90.cu", gemm::few_and_tiles, ["w8a16"],
        "if (!ptx::elect_one()) continue;" => "";
    sm90_gemm_share, "gemm_sm90.cu", gemm::few_and_tiles, ["w8a16"],
        "const uint32_t s = warp * OWN_STRIPS + i;" => "const uint32_t s = i;";
    sm90_gemm_few_stages, "gemm_sm90.cu", gemm::few_and_tiles, ["w8a16"],
        "product<W8A16, 128, 8>" => "product<W8A16, 128, 9>";
    sm90_gemm_empty_parity, "gemm_sm90.cu", gemm::few_and_tiles, ["w8a16"],
        "(index / STAGES - 1) % 2" => "index / STAGES % 2";
    sm90_gemm_released_early, "gemm_sm90.cu", gemm::few_and_tiles, ["w8a16"],
        "                ptx::wgmma_wait<0>();
                release(index);
                if" =>
        "                release(index);
                ptx::wgmma_wait<0>();
                if";
    sm90_gemm_rotated_released_early, "gemm_sm90.cu", gemm::rotated_int8, ["r8a8"],
        "if (index > 0) release(index - 1);" => "release(index);";
    sm90_gemm_int8_not_waited, "gemm_sm90.cu", gemm::int8_activations, ["w8a8"],
        "else ptx::wgmma_wait<0>();" => "else ptx::wgmma_wait<1>();";
    sm90_gemm_out_barrier, "gemm_sm90.cu", gemm::few_and_tiles, ["w8a16"],
        "ptx::sync_named(1, CONSUMERS);
        float *out" =>
        "float *out";
    sm90_gemm_stride, "gemm_sm90.cu", gemm::few_and_tiles, ["w8a16"],
        "step * 32, 16, 1024)" => "step * 32, 16, 2048)";
    sm90_gemm_release_sync, "gemm_sm90.cu", gemm::int8_activations, ["w8a8"],
        "            ptx::sync_warp();
            if (lane == 0) ptx::barrier_arrive" =>
        "            if (lane == 0) ptx::barrier_arrive";
    sm90_gemm_fence, "gemm_sm90.cu", gemm::few_and_tiles, ["w8a16"],
        "index) {
                ptx::wgmma_fence();
#pragma unroll
                for (uint32_t step" =>
        "index) {
#pragma unroll
                for (uint32_t step";
    sm90_gemm_init_fence, "gemm_sm90.cu", gemm::few_and_tiles, ["w8a16"],
        "ptx::barrier_init_fence();" => "";
    sm90_gemm_offset, "gemm.cuh", gemm::weights_alone, ["w8a16"],
        "-32896.0f * scale" => "-32895.0f * scale";
}

faults! {
    norm, SM80:
    norm_variance, "norm.cu", norm::formulas, [],
        "squares = fmaf(terms.v[i], terms.v[i], squares);" =>
        "squares = fmaf(terms.v[i] + mean, terms.v[i] + mean, squares);";
    norm_sum_barrier, "norm.cu", norm::neighbours, [],
        "    ptx::sync_block();
    float sum" =>
        "    float sum";
    norm_partials_shared, "norm.cu", norm::neighbours, [],
        "block_sum(squares, partials + WARPS)" => "block_sum(squares, partials)";
    norm_padding, "norm.cu", norm::magnitudes, [],
        "y.v[i] = in_dim(start, i) ? value : 0.0f;" => "y.v[i] = value;";
    norm_odd_dim, "norm.cu", norm::formulas, [],
        "x.v[i] = column + i < dim ? row[column + i] : 0.0f;" => "x.v[i] = column < dim ? row[column + i] : 0.0f;";
    norm_exchange, "norm.cu", norm::formulas, [],
        "ptx::shfl_xor(upper ? first : second, 2)" => "ptx::shfl_xor(upper ? second : first, 2)";
    norm_order_of_sums, "norm.cu", norm::summation, [],
        "{16, 8, 4, 1, 2}" => "{16, 8, 4, 2, 1}";
    norm_kept_weights, "norm.cu", norm::widths, [],
        "weights[round] = load(p.weight, start); });" => "weights[round] = load(p.weight, 0); });";
    norm_rotation, "norm.cu", norm::rotation, [],
        "second ? other - x.v[i]" => "second ? x.v[i] - other";
    norm_added_row, "norm.cu", norm::added, [],
        "(float *)p.out + (size_t)blockIdx.x * p.dim" => "(float *)p.out + (size_t)(blockIdx.x / 2 * 2) * p.dim";
    norm_not_added, "norm.cu", norm::added, [],
        "sum.v[i] += y.v[i];" => "sum.v[i] = y.v[i];";
    embed_factor, "norm.cu", norm::embedding, [],
        "x.v[j] *= p.factor;" => "";
    norm_int8_rounding, "norm.cu", norm::conversions, [],
        "ptx::round_s8(x.v[i] * factor)" => "(int)(x.v[i] * factor)";
    embed_scale_row, "norm.cu", norm::embedding, [],
        "at.row % 8 * 2 + at.row / 8]" => "at.row % 8 * 2]";
}

faults! {
    rope, SM80:
    rope_pairing, "rope.cu", rope::check, [],
        ": i + n_pairs;" => ": i + p.head_dim / 2;";
    rope_q_norm_ignored, "rope.cu", rope::check, [],
        "const float *weight = p.q_norm;" => "const float *weight = nullptr;";
    rope_k_norm_of_q, "rope.cu", rope::check, [],
        "weight = is_k ? p.k_norm : nullptr;" => "weight = is_k ? p.q_norm : nullptr;";
    rope_angles_of_another_row, "rope.cu", rope::check, [],
        "const size_t angles = (size_t)row * p.n_pairs;" => "const size_t angles = (size_t)(row / 2 * 2) * p.n_pairs;";
    rope_slot, "rope.cu", rope::check, [],
        "p.slot_mapping[row]" => "p.slot_mapping[row / 2 * 2]";
    rope_no_slot, "rope.cu", rope::check, [],
        "if (slot >= p.n_slots) return;" => "";
}

faults! {
    sample, SM80:
    sample_argmax_tie, "sample.cu", sample::odd_values, [],
        "b.value == a.value && b.index < a.index" => "b.value == a.value && b.index > a.index";
    sample_soft_cap, "sample.cu", sample::soft_caps, [],
        "tanhf(p.logits[at] / p.cap)" => "tanhf(p.logits[at])";
    sample_base, "sample.cu", sample::odd_values, [],
        "const float base = fmaxf(max, -LARGEST);" => "const float base = max;";
    sample_counts_shared, "sample.cu", sample::sizes, [],
        "shared.counts[bit % 2]" => "shared.counts[0]";
    sample_chosen_barrier, "sample.cu", sample::sizes, [],
        "        if (keys[i] >= threshold) shared.chosen[at++] = keys[i];
    }
    ptx::sync_block();" =>
        "        if (keys[i] >= threshold) shared.chosen[at++] = keys[i];
    }";
    sample_running_sum, "sample.cu", sample::draws, [],
        "running[1] += ptx::shfl(running[0], 31);" => "";
    sample_top_p, "sample.cu", sample::edges, [],
        "return sum >= enough;" => "return sum > enough;";
}
