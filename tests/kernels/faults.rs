//! Planted faults: each one is a change of the kernels' source, and a check of the other files must then fail.
//!
//! This tests the checks. It also tests that the emulator varies the order of threads enough, because a missing barrier
//! gives wrong numbers only in some orders. A fault that no check notices shows that a check, or the emulator, has to be
//! improved.
//!
//! A kernel file is compiled once, with all of its faults. Each is there beside the right code, and a launch says which
//! one is on: a compilation for each fault took most of the time.

use std::any::Any;
use std::collections::HashMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use tempfile::TempDir;
use welm_kernels::Device;
use welm_tests::emulator::compile::compile;
use welm_tests::emulator::{Emulator, Options, Planted};

use crate::{attention, gemm, norm, rope, sample};

const SM80: (u32, u32) = (8, 0);
const SM90: (u32, u32) = (9, 0);
/// Number of random orders of threads that are tried. One of them must show the fault.
const SEEDS: u64 = 8;

/// A check with which a fault is looked for.
struct Control {
    library: &'static str,
    capability: (u32, u32),
    /// Only kernels with one of these in their name run. An empty list means all. If a check gets as far as launching
    /// another kernel, it has not noticed the fault.
    kernels: &'static [&'static str],
    check: fn(&Device),
}

impl Control {
    /// The message with which the check fails, and under which of the first `seeds` seeds, if this fault of a library
    /// is on; 0 for none.
    fn run(&self, library: &Path, fault: u32, seeds: u64) -> Option<(String, u64)> {
        let first = Options::default().seed;
        (first..first + seeds).find_map(|seed| {
            let libraries = HashMap::from([(self.library.to_owned(), library.to_owned())]);
            let planted = Planted { fault, kernels: self.kernels };
            let options =
                Options { capability: self.capability, seed, libraries, planted, ..Options::default() };
            let device = Device::with_driver(Emulator::new(options));
            let panic = catch_unwind(AssertUnwindSafe(|| (self.check)(&device))).err()?;
            let message = message(&*panic);
            assert!(!message.contains(&library.display().to_string()), "it does not load: {message}");
            // The check got as far as a kernel that must not run, so it has not noticed the fault.
            (!message.contains("no such kernel")).then_some((message, seed))
        })
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a text").to_owned()
}

/// A change of the source, and the check that must notice it.
struct Fault {
    name: &'static str,
    control: Control,
    /// A file, and a text that is in it once: a whole expression, or statements with their semicolons.
    file: &'static str,
    find: &'static str,
    /// What the fault has in its place; or source for both, in which `FAULT` says whether the fault is on.
    replace: &'static str,
}

impl Fault {
    /// Puts the fault into its file, with this number.
    fn plant(&self, folder: &Path, number: usize) {
        let Fault { file, find, replace, .. } = *self;
        let text = |path: &Path| fs::read_to_string(path.join(file)).unwrap();
        let n = text(&kernels()).matches(find).count();
        assert_eq!(n, 1, "{file} has changed, so must the fault: {find:?} is there {n} times");
        let on = format!("(emulator::planted_fault == {number})");
        let both = if replace.contains("FAULT") {
            replace.replace("FAULT", &on)
        } else if find.trim_end().ends_with(';') {
            format!("{{ if (!{on}) {{\n{find}\n}} else {{\n{replace}\n}} }}\n")
        } else {
            format!("(!{on} ? ({find}) : ({replace}))")
        };
        // Faults in the same place: the right code is the first in `both`.
        fs::write(folder.join(file), text(folder).replacen(find, &both, 1)).unwrap();
    }
}

/// The folder of the kernels' source.
fn kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../welm-kernels/cuda")
}

fn emulator() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("emulator")
}

/// A copy of the kernels' source.
fn copy() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(kernels()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

/// The kernels of a file with these faults. The first test that asks for them compiles them; the others, which are
/// processes of their own, wait for it.
fn library(name: &str, faults: &[Fault]) -> PathBuf {
    let folder = copy();
    for (i, fault) in faults.iter().enumerate() {
        fault.plant(folder.path(), i + 1);
    }
    let mut hasher = DefaultHasher::new();
    for of in [folder.path(), &emulator()] {
        let mut files: Vec<_> = fs::read_dir(of).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files.iter().for_each(|file| fs::read(file).unwrap().hash(&mut hasher));
    }
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("faults-{name}"));
    let library = built.join(format!("{:016x}.so", hasher.finish()));
    fs::create_dir_all(&built).unwrap();
    let lock = File::create(built.join("lock")).unwrap();
    lock.lock().unwrap();
    if !library.exists() {
        let source = folder.path().join(format!("{name}.cu"));
        let new = folder.path().join("new.so");
        // Optimised for a fast build, because little of it runs before a check fails.
        compile(&source, folder.path(), &emulator(), &new, "g").unwrap();
        fs::copy(&new, built.join("new.so")).unwrap();
        fs::rename(built.join("new.so"), &library).unwrap();
    }
    library
}

/// Passes if the check of a fault notices it.
fn noticed(faults: &[Fault], name: &str) {
    let start = Instant::now();
    let number = faults.iter().position(|fault| fault.name == name).expect("it is one of them");
    let control = &faults[number].control;
    let library = library(control.library, faults);
    let Some((message, seed)) = control.run(&library, number as u32 + 1, SEEDS) else {
        panic!("its check has not noticed {name}");
    };
    println!("{name}: seed {seed}, {:.1} s: {message}", start.elapsed().as_secs_f64());
}

/// A library's faults, and tests that pass if a check notices the fault; lines are
/// `name, file, check, kernels, find => replace`.
macro_rules! faults {
    ($faults:ident = $library:ident, $capability:ident: $(
        $name:ident, $file:literal, $check:path, $kernels:expr, $find:expr => $replace:expr;
    )*) => {
        const $faults: &[Fault] = &[$(
            Fault {
                name: stringify!($name),
                control: Control {
                    library: stringify!($library),
                    capability: $capability,
                    kernels: &$kernels,
                    check: $check,
                },
                file: $file,
                find: $find,
                replace: $replace,
            },
        )*];

        $(
            #[test]
            fn $name() {
                noticed($faults, stringify!($name));
            }
        )*
    };
}

/// While no fault is on, the checks pass.
#[test]
fn no_fault() {
    let (rope, windows) = (rope::check as fn(&Device), attention::prefill_windows);
    let controls = [
        (ROPE, Control { library: "rope", capability: SM80, kernels: &[], check: rope }),
        (
            ATTENTION_SM90,
            Control { library: "attention_sm90", capability: SM90, kernels: &["hd80"], check: windows },
        ),
    ];
    for (faults, control) in controls {
        let library = library(control.library, faults);
        assert_eq!(control.run(&library, 0, 1), None, "{} as it is", control.library);
    }
}

/// One product with all columns of V gives the same result as two.
#[test]
fn sm90_attention_whole_columns() {
    let folder = copy();
    let (split, whole) = ("constexpr bool SPLIT_COLUMNS = true;", "constexpr bool SPLIT_COLUMNS = false;");
    let source = folder.path().join("attention_sm90.cu");
    let text = fs::read_to_string(&source).unwrap();
    assert_eq!(text.matches(split).count(), 1, "{text}");
    fs::write(&source, text.replace(split, whole)).unwrap();
    let library = source.with_extension("so");
    compile(&source, folder.path(), &emulator(), &library, "g").unwrap();
    let check = attention::prefill_lengths;
    let control = Control { library: "attention_sm90", capability: SM90, kernels: &[], check };
    assert_eq!(control.run(&library, 0, 1), None);
}

faults! {
    ATTENTION = attention, SM80:
    attention_mask, "attention.cuh", attention::prefill_windows, ["hd80"],
        "key > seen[e / 2].last" => "key > seen[e / 2].last + 1";
    attention_window, "attention.cuh", attention::prefill_windows, ["hd80"],
        "pos - window + 1" => "pos - window";
    attention_soft_cap_ignored, "attention.cuh", attention::prefill_capped, ["hd64"],
        "cap_c != 0.0f" => "false";
    attention_soft_cap_after_the_mask, "attention.cuh", attention::prefill_capped, ["hd64"],
        "s[j][e] = MASKED;" => "s[j][e] = cap_c != 0.0f ? -1.0f : MASKED;";
    attention_decode_soft_cap_ignored, "attention.cu", attention::decode_capped, ["hd64", "combine"],
        "step<HD, 1>(rows, q, k, k + TILE_BYTES, first, seen, masked, p.c, p.cap_c, lane);" =>
        "step<HD, 1>(rows, q, k, k + TILE_BYTES, first, seen, masked, p.c, 0.0f, lane);";
    attention_acc_not_rescaled, "attention.cuh", attention::prefill_windows, ["hd80"],
        "rows.acc[j][2 * h + 1] *= factor;" => "";
    attention_key_fragments, "attention.cuh", attention::prefill_windows, ["hd80"],
        "low[2] = {keys[0], keys[1]}, high[2] = {keys[2], keys[3]}" =>
        "low[2] = {keys[0], keys[FAULT ? 2 : 1]}, high[2] = {keys[FAULT ? 1 : 2], keys[3]}";
    attention_swizzle, "attention.cuh", attention::prefill_windows, ["hd80"],
        "tile + offset<HD>(row, i % PIECES)" => "tile + row * (HD * 2) + i % PIECES * 16";
    attention_slots_of_no_key, "attention.cuh", attention::prefill_windows, ["hd80"],
        "valid.first <= key && key <= valid.last" => "true";
    attention_prefill_barrier, "attention.cu", attention::prefill_windows, ["hd80"],
        "ptx::sync_block();  // this step" => "if (!FAULT) ptx::sync_block();  // this step";
    attention_prefill_table, "attention.cu", attention::prefill_lengths, ["hd64"],
        "tile.table_start + block" => "p.spans[max(p.tiles[2 * blockIdx.y], 1u) - 1].table_start + block";
    attention_prefill_entries, "attention.cu", attention::prefill_far, ["hd64"],
        "index == first_step || index % 32 == 0" => "index == first_step";
    attention_prefill_kv_head, "attention.cu", attention::prefill_windows, ["hd80"],
        "head / (p.n_heads / p.n_kv_heads)" => "head % p.n_kv_heads";
    attention_prefill_padding, "attention.cu", attention::prefill_lengths, ["hd64", "hd80"],
        "head == p.n_heads - 1" => "head == p.n_heads";
    attention_decode_sync, "attention.cu", attention::decode, ["hd64", "combine"],
        "ptx::sync_warp();  // this slot" => "if (!FAULT) ptx::sync_warp();  // this slot";
    attention_decode_wait, "attention.cu", attention::decode, ["hd64", "combine"],
        "ptx::cp_async_wait<STAGES - 2>();" => "ptx::cp_async_wait<STAGES - 1>();";
    attention_decode_table, "attention.cu", attention::decode, ["hd64", "combine"],
        "p.table_starts[row]" => "p.table_starts[row / 2 * 2]";
    attention_combine_too_few, "attention.cu", attention::decode, ["hd64", "combine"],
        "min(splits_of(seen_from(p.positions[row], p.window)), p.n_splits)" =>
        "max(splits_of(seen_from(p.positions[row], p.window)) - 1, 1u)";
    attention_combine_stale, "attention.cu", attention::decode, ["hd64", "combine"],
        "min(splits_of(seen_from(p.positions[row], p.window)), p.n_splits)" => "p.n_splits";
    attention_table_unchecked, "attention.cuh", attention::errors, ["hd64"],
        "return (uint64_t)table_start + last_key / BLOCK_KEYS < table_len;" => "return true;";
}

faults! {
    ATTENTION_SM90 = attention_sm90, SM90:
    sm90_attention_mask, "attention_sm90.cu", attention::prefill_windows, ["hd80"],
        "key > seen[e / 2].last" => "key > seen[e / 2].last + 1";
    sm90_attention_window_skipped, "attention_sm90.cu", attention::prefill_windows, ["hd80"],
        "seen_from(first_pos + 15, p.window).first" => "seen_from(first_pos, p.window).first";
    sm90_attention_soft_cap_ignored, "attention_sm90.cu", attention::prefill_capped, ["hd64"],
        "p.cap_c != 0.0f" => "false";
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
        "b = warp * SHARE + i, first" => "b = FAULT ? i : warp * SHARE + i, first";
    sm90_attention_other_columns, "attention_sm90.cu", attention::prefill_windows, ["hd80"],
        "block + (PIECE_BYTES >> 4)" => "block";
    sm90_attention_arrivals, "attention_sm90.cu", attention::prefill_far, ["hd64"],
        "ptx::barrier_init(&barriers.k_empty[i], warps);" => "ptx::barrier_init(&barriers.k_empty[i], warps - 1);";
}

faults! {
    GEMM = gemm, SM80:
    gemm_few_sum_barrier, "gemm.cu", gemm::functions, ["w8a16"],
        "        *at = total;
    }
    ptx::sync_block();" =>
        "        *at = total;
    }
    if (!FAULT) ptx::sync_block();";
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
        "ptx::sync_block();  // this stage" => "if (!FAULT) ptx::sync_block();  // this stage";
    gemm_tile_x_lanes, "gemm.cu", gemm::few_and_tiles, ["w8a16"],
        "warp_token + lane % 8 + lane / 16 * 8" => "warp_token + lane % 8 + lane / 8 % 2 * 8";
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
        "{total[0], total[1], total[2], total[3]};
    if (!FAULT) ptx::sync_block();";
    gemm_int8_scale_group, "gemm.cu", gemm::int8_activations, ["w8a8"],
        "(b_scales + (group * TOKENS + token) * 4)" => "(b_scales + ((group ^ 1) * TOKENS + token) * 4)";
    gemm_int8_scale_tail, "gemm.cu", gemm::int8_activations, ["w8a8"],
        "const bool inside = first_token + token < p.n;
                const float" =>
        "const bool inside = FAULT || first_token + token < p.n;
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
        "p.out_stride % 4 == 0" => "true";
    gemm_store_last_columns, "gemm.cuh", gemm::edges, ["w8a16"],
        "cols == 4 && aligned" => "aligned";
    gemm_store_last_rows, "gemm.cuh", gemm::edges, ["w8a16"],
        "i * step < tile.n_tokens && token + i * step < n" => "i * step < tile.n_tokens";
}

faults! {
    GEMM_SM90 = gemm_sm90, SM90:
    sm90_gemm_bytes, "gemm_sm90.cu", gemm::few_and_tiles, ["w8a16"],
        "OWN_STRIPS * (L::A_STRIP + L::SCALES_STRIP) + b_scale_bytes" => "OWN_STRIPS * L::A_STRIP + b_scale_bytes";
    sm90_gemm_every_lane, "gemm_sm90.cu", gemm::few_and_tiles, ["w8a16"],
        "if (!ptx::elect_one()) continue;" => "";
    sm90_gemm_share, "gemm_sm90.cu", gemm::few_and_tiles, ["w8a16"],
        "s = warp * OWN_STRIPS + i;" => "s = FAULT ? i : warp * OWN_STRIPS + i;";
    sm90_gemm_few_stages, "gemm_sm90.cu", gemm::few_and_tiles, ["w8a16"],
        "product<W8A16, 128, 8>(p);" => "product<W8A16, 128, 9>(p);";
    sm90_gemm_empty_parity, "gemm_sm90.cu", gemm::few_and_tiles, ["w8a16"],
        "(index / STAGES - 1) % 2" => "index / STAGES % 2";
    sm90_gemm_released_early, "gemm_sm90.cu", gemm::few_and_tiles, ["w8a16"],
        "                ptx::wgmma_wait<0>();
                release(index);" =>
        "                release(index);
                ptx::wgmma_wait<0>();";
    sm90_gemm_rotated_released_early, "gemm_sm90.cu", gemm::rotated_int8, ["r8a8"],
        "if (index > 0) release(index - 1);" => "release(index);";
    sm90_gemm_int8_not_waited, "gemm_sm90.cu", gemm::int8_activations, ["w8a8"],
        "else ptx::wgmma_wait<0>();" => "else if (FAULT) ptx::wgmma_wait<1>();
        else ptx::wgmma_wait<0>();";
    sm90_gemm_out_barrier, "gemm_sm90.cu", gemm::few_and_tiles, ["w8a16"],
        "ptx::sync_named(1, CONSUMERS);
        float *out" =>
        "if (!FAULT) ptx::sync_named(1, CONSUMERS);
        float *out";
    sm90_gemm_stride, "gemm_sm90.cu", gemm::few_and_tiles, ["w8a16"],
        "step * 32, 16, 1024)" => "step * 32, 16, FAULT ? 2048 : 1024)";
    sm90_gemm_release_sync, "gemm_sm90.cu", gemm::int8_activations, ["w8a8"],
        "            ptx::sync_warp();
            if (lane == 0) ptx::barrier_arrive" =>
        "            if (!FAULT) ptx::sync_warp();
            if (lane == 0) ptx::barrier_arrive";
    sm90_gemm_fence, "gemm_sm90.cu", gemm::few_and_tiles, ["w8a16"],
        "index) {
                ptx::wgmma_fence();
#pragma unroll
                for (uint32_t step" =>
        "index) {
                if (!FAULT) ptx::wgmma_fence();
#pragma unroll
                for (uint32_t step";
    sm90_gemm_init_fence, "gemm_sm90.cu", gemm::few_and_tiles, ["w8a16"],
        "ptx::barrier_init_fence();" => "";
    sm90_gemm_offset, "gemm.cuh", gemm::weights_alone, ["w8a16"],
        "-32896.0f * scale" => "-32895.0f * scale";
}

faults! {
    NORM = norm, SM80:
    norm_variance, "norm.cu", norm::formulas, [],
        "squares = fmaf(terms.v[i], terms.v[i], squares);" =>
        "squares = fmaf(terms.v[i] + mean, terms.v[i] + mean, squares);";
    norm_sum_barrier, "norm.cu", norm::neighbours, [],
        "    ptx::sync_block();
    float sum" =>
        "    if (!FAULT) ptx::sync_block();
    float sum";
    norm_partials_shared, "norm.cu", norm::neighbours, [],
        "block_sum(squares, partials + WARPS)" => "block_sum(squares, partials)";
    norm_padding, "norm.cu", norm::magnitudes, [],
        "y.v[i] = in_dim(start, i) ? value : 0.0f;" => "y.v[i] = value;";
    norm_odd_dim, "norm.cu", norm::formulas, [],
        "x.v[i] = column + i < dim ? row[column + i] : 0.0f;" => "x.v[i] = column < dim ? row[column + i] : 0.0f;";
    norm_exchange, "norm.cu", norm::formulas, [],
        "ptx::shfl_xor(upper ? first : second, 2)" => "ptx::shfl_xor(upper ? second : first, 2)";
    norm_order_of_sums, "norm.cu", norm::summation, [],
        "x += ptx::shfl_xor(x, MASKS[i]);" => "x += ptx::shfl_xor(x, MASKS[i < 3 ? i : 7 - i]);";
    norm_kept_weights, "norm.cu", norm::widths, [],
        "weights[round] = load(p.weight, start);" => "weights[round] = load(p.weight, 0);";
    norm_rotation, "norm.cu", norm::rotation, [],
        "other - x.v[i]" => "x.v[i] - other";
    norm_added_row, "norm.cu", norm::added, [],
        "(float *)p.out + (size_t)blockIdx.x * p.dim" => "(float *)p.out + (size_t)(blockIdx.x / 2 * 2) * p.dim";
    norm_not_added, "norm.cu", norm::added, [],
        "sum.v[i] += y.v[i];" => "sum.v[i] = y.v[i];";
    embed_factor, "norm.cu", norm::embedding, [],
        "x.v[j] *= p.factor;" => "";
    norm_int8_rounding, "norm.cu", norm::conversions, [],
        "ptx::round_s8(x.v[i] * factor)" => "(int)(x.v[i] * factor)";
    embed_scale_row, "norm.cu", norm::embedding, [],
        "at.row % 8 * 2 + at.row / 8" => "at.row % 8 * 2";
}

faults! {
    ROPE = rope, SM80:
    rope_pairing, "rope.cu", rope::check, [],
        "i + n_pairs" => "i + p.head_dim / 2";
    rope_q_norm_ignored, "rope.cu", rope::check, [],
        "const float *weight = p.q_norm;" => "const float *weight = FAULT ? nullptr : p.q_norm;";
    rope_k_norm_of_q, "rope.cu", rope::check, [],
        "is_k ? p.k_norm : nullptr" => "is_k ? p.q_norm : nullptr";
    rope_angles_of_another_row, "rope.cu", rope::check, [],
        "(size_t)row * p.n_pairs" => "(size_t)(row / 2 * 2) * p.n_pairs";
    rope_slot, "rope.cu", rope::check, [],
        "p.slot_mapping[row]" => "p.slot_mapping[row / 2 * 2]";
    rope_no_slot, "rope.cu", rope::check, [],
        "if (slot >= p.n_slots) return;" => "";
}

faults! {
    SAMPLE = sample, SM80:
    sample_argmax_tie, "sample.cu", sample::odd_values, [],
        "b.value == a.value && b.index < a.index" => "b.value == a.value && b.index > a.index";
    sample_soft_cap, "sample.cu", sample::soft_caps, [],
        "tanhf(p.logits[at] / p.cap)" => "tanhf(p.logits[at])";
    sample_base, "sample.cu", sample::odd_values, [],
        "const float base = fmaxf(max, -LARGEST);" => "const float base = FAULT ? max : fmaxf(max, -LARGEST);";
    sample_counts_shared, "sample.cu", sample::sizes, [],
        "shared.counts[bit % 2]" => "shared.counts[0]";
    sample_chosen_barrier, "sample.cu", sample::sizes, [],
        "        if (keys[i] >= threshold) shared.chosen[at++] = keys[i];
    }
    ptx::sync_block();" =>
        "        if (keys[i] >= threshold) shared.chosen[at++] = keys[i];
    }
    if (!FAULT) ptx::sync_block();";
    sample_running_sum, "sample.cu", sample::draws, [],
        "running[1] += ptx::shfl(running[0], 31);" => "";
    sample_top_p, "sample.cu", sample::edges, [],
        "return sum >= enough;" => "return sum > enough;";
}
