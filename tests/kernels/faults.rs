//! Planted faults: each is put into a copy of the kernels' source, alone, and a check of the other files must fail.
//!
//! What the checks are worth shows here, the order in which threads run included: a dropped barrier is wrong only in
//! some orders. A fault that nothing notices is a hole in a check or in the emulator, and is to be closed there.

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
/// Orders of threads, of which one must show the fault.
const SEEDS: u64 = 4;

/// Text of a source file, and what takes its place.
struct Change {
    file: &'static str,
    find: &'static str,
    replace: &'static str,
}

/// Compiles `library` with a change, or without, and runs a check on it, under the first `seeds` seeds. What the check
/// has to say against it, and under which seed.
fn run(
    library: &'static str,
    change: Option<Change>,
    capability: (u32, u32),
    seeds: u64,
    check: fn(&Device),
) -> Option<(String, u64)> {
    let folder = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for entry in fs::read_dir(root.join("../welm-kernels/cuda")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    if let Some(Change { file, find, replace }) = change {
        let source = fs::read_to_string(folder.path().join(file)).unwrap();
        let n = source.matches(find).count();
        assert_eq!(n, 1, "{file} has changed, so must the fault: {find:?} is there {n} times");
        fs::write(folder.path().join(file), source.replacen(find, replace, 1)).unwrap();
    }
    let path = folder.path().join(format!("{library}.so"));
    let source = folder.path().join(format!("{library}.cu"));
    compile(&source, folder.path(), &root.join("emulator"), &path).unwrap();

    let first = Options::default().seed;
    (first..first + seeds).find_map(|seed| {
        let libraries = HashMap::from([(library.to_owned(), path.clone())]);
        let options = Options { capability, seed, libraries, ..Options::default() };
        let device = Device::with_driver(Emulator::new(options));
        let panic = catch_unwind(AssertUnwindSafe(|| check(&device))).err()?;
        let message = message(&*panic);
        // The kernel has to have run.
        let harness =
            [&path.display().to_string(), "no such kernel"].iter().any(|text| message.contains(text));
        assert!(!harness, "not the fault: {message}");
        Some((message, seed))
    })
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a text").to_owned()
}

/// `name, file, check, find => replace`: a test that passes if the check, on the library with the change, fails.
macro_rules! faults {
    ($library:ident, $capability:ident: $(
        $name:ident, $file:literal, $check:path, $find:expr => $replace:expr;
    )*) => {$(
        #[test]
        fn $name() {
            let start = Instant::now();
            let change = Change { file: $file, find: $find, replace: $replace };
            match run(stringify!($library), Some(change), $capability, SEEDS, $check) {
                Some((message, seed)) => println!(
                    "{}: {}, seed {seed}, {:.1} s: {message}",
                    stringify!($name),
                    stringify!($check),
                    start.elapsed().as_secs_f64(),
                ),
                None => panic!("{} has not noticed {}", stringify!($check), stringify!($name)),
            }
        }
    )*};
}

/// Without a fault the checks pass.
#[test]
fn no_fault() {
    for (library, capability, check) in
        [("rope", SM80, rope::check as fn(&Device)), ("norm", SM80, norm::embedding)]
    {
        assert_eq!(run(library, None, capability, 1, check), None, "{library} as it is");
    }
}

faults! {
    attention, SM80:
    attention_mask, "attention.cuh", attention::prefill_windows,
        "key > seen[e / 2].last" => "key > seen[e / 2].last + 1";
    attention_window, "attention.cuh", attention::prefill_windows,
        "pos - window + 1 : 0" => "pos - window : 0";
    attention_acc_not_rescaled, "attention.cuh", attention::prefill_windows,
        "rows.acc[j][2 * h + 1] *= factor;" => "";
    attention_sum_not_rescaled, "attention.cuh", attention::prefill_windows,
        "rows.sum[h] = fmaf(rows.sum[h], factor, sum);" => "rows.sum[h] += sum;";
    attention_key_fragments, "attention.cuh", attention::prefill_windows,
        "low[2] = {keys[0], keys[1]}, high[2] = {keys[2], keys[3]}" =>
        "low[2] = {keys[0], keys[2]}, high[2] = {keys[1], keys[3]}";
    attention_p_fragments, "attention.cuh", attention::prefill_windows,
        "            ptx::pack_bf16(s[2 * b][2], s[2 * b][3]),
            ptx::pack_bf16(s[2 * b + 1][0], s[2 * b + 1][1]),
" =>
        "            ptx::pack_bf16(s[2 * b + 1][0], s[2 * b + 1][1]),
            ptx::pack_bf16(s[2 * b][2], s[2 * b][3]),
";
    attention_value_lanes, "attention.cuh", attention::prefill_windows,
        "16 * b + lane % 16, 2 * j + lane / 16" => "16 * b + lane / 16 * 8 + lane % 8, 2 * j + lane / 8 % 2";
    attention_swizzle, "attention.cuh", attention::prefill_windows,
        "tile + offset<HD>(row, i % PIECES)" => "tile + row * (HD * 2) + i % PIECES * 16";
    attention_slots_of_no_key, "attention.cuh", attention::prefill_windows,
        "const bool inside = valid.first <= key && key <= valid.last;" => "const bool inside = true;";
    attention_prefill_barrier, "attention.cu", attention::prefill_windows,
        "ptx::sync_block();  // this step" => "// this step";
    attention_prefill_wait, "attention.cu", attention::prefill_windows,
        "ptx::cp_async_wait<0>();" => "ptx::cp_async_wait<1>();";
    attention_prefill_table, "attention.cu", attention::prefill_lengths,
        "used ? p.block_tables[span.table_start + block]" =>
        "used ? p.block_tables[p.spans[max(span_index, 1u) - 1].table_start + block]";
    attention_prefill_entry, "attention.cu", attention::prefill_windows,
        "WARPS * (index / 32 * 32 + lane) + warp;" => "WARPS * (index / 32 * 32 + lane) + (warp ^ 1);";
    attention_prefill_entries, "attention.cu", attention::prefill_far,
        "if (index == first_step || index % 32 == 0) {" => "if (index == first_step) {";
    attention_prefill_kv_head, "attention.cu", attention::prefill_windows,
        "kv_head = head / (p.n_heads / p.n_kv_heads)" => "kv_head = head % p.n_kv_heads";
    attention_prefill_padding, "attention.cu", attention::prefill_lengths,
        "if (head == p.n_heads - 1) zero_padding(" => "if (head == p.n_heads) zero_padding(";
    attention_prefill_tail, "attention.cu", attention::prefill_windows,
        "if (r >= n) continue;" => "";
    attention_prefill_masked, "attention.cu", attention::prefill_windows,
        "const bool masked = first < every_row_from || last > first_pos;" =>
        "const bool masked = last > first_pos;";
    attention_prefill_skips, "attention.cu", attention::prefill_windows,
        "first > warp_keys.last || last < warp_keys.first" => "last > warp_keys.last || last < warp_keys.first";
    attention_decode_sync, "attention.cu", attention::decode,
        "ptx::sync_warp();  // this slot" => "// this slot";
    attention_decode_wait, "attention.cu", attention::decode,
        "ptx::cp_async_wait<STAGES - 2>();" => "ptx::cp_async_wait<STAGES - 1>();";
    attention_decode_barrier, "attention.cu", attention::decode,
        "    ptx::sync_block();
    for (uint32_t i = threadIdx.x; i < n_heads * (HD / 4)" => "    for (uint32_t i = threadIdx.x; i < n_heads * (HD / 4)";
    attention_decode_table, "attention.cu", attention::decode,
        "table_start = p.table_starts[row];" => "table_start = p.table_starts[row / 2 * 2];";
    attention_decode_maxima, "attention.cu", attention::decode,
        "add_part(all, ptx::ex2((maxima[w * 16 + r] - max) * p.c)," => "add_part(all, 1.0f,";
    attention_decode_heads, "attention.cu", attention::decode,
        "head = kv_head * group + pass * HEADS," => "head = kv_head * group + pass * (HEADS - 1),";
    attention_decode_split_key, "attention.cu", attention::decode,
        "(keys.first / SPLIT_KEYS + split) * SPLIT_KEYS" => "keys.first + split * SPLIT_KEYS";
    attention_combine_too_few, "attention.cu", attention::decode,
        "const uint32_t n = min(splits_of(seen_from(p.positions[row], p.window)), p.n_splits);" =>
        "const uint32_t n = max(splits_of(seen_from(p.positions[row], p.window)) - 1, 1u);";
    attention_combine_stale, "attention.cu", attention::decode,
        "const uint32_t n = min(splits_of(seen_from(p.positions[row], p.window)), p.n_splits);" =>
        "const uint32_t n = p.n_splits;";
    attention_combine_factor, "attention.cu", attention::decode,
        "add_part(all, ptx::ex2((p.max[at] - max) * p.c)," => "add_part(all, 1.0f,";
    attention_combine_padding, "attention.cu", attention::decode,
        "*(uint2 *)out = {0, 0};" => "";
    attention_block_unchecked, "attention.cuh", attention::errors,
        "return min(entry, n_blocks - 1);" => "return entry;";
    attention_table_unchecked, "attention.cuh", attention::errors,
        "return (uint64_t)table_start + last_key / BLOCK_KEYS < table_len;" => "return true;";
}

faults! {
    attention_sm90, SM90:
    sm90_attention_mask, "attention_sm90.cu", attention::prefill_windows,
        "key > seen[e / 2].last" => "key > seen[e / 2].last + 1";
    sm90_attention_mask_skipped, "attention_sm90.cu", attention::prefill_windows,
        "last <= first_pos) return;" => "last <= first_pos + 15) return;";
    sm90_attention_window_skipped, "attention_sm90.cu", attention::prefill,
        "seen_from(first_pos + 15, p.window).first" => "seen_from(first_pos, p.window).first";
    sm90_attention_k_empty_parity, "attention_sm90.cu", attention::prefill_far,
        "ptx::barrier_wait(&barriers.k_empty[stage.index], stage.parity ^ 1);" =>
        "ptx::barrier_wait(&barriers.k_empty[stage.index], stage.parity);";
    sm90_attention_k_never_empty, "attention_sm90.cu", attention::prefill_far,
        "ptx::barrier_wait(&barriers.k_empty[stage.index], stage.parity ^ 1);" => "";
    sm90_attention_v_never_empty, "attention_sm90.cu", attention::prefill_far,
        "ptx::barrier_wait(&barriers.v_empty[stage.index], stage.parity ^ 1);" => "";
    sm90_attention_k_not_full, "attention_sm90.cu", attention::prefill_windows,
        "ptx::barrier_wait(&barriers.k_full[stage.index], stage.parity);" => "";
    sm90_attention_v_not_full, "attention_sm90.cu", attention::prefill_windows,
        "ptx::barrier_wait(&barriers.v_full[stage.index], stage.parity);" => "";
    sm90_attention_k_bytes, "attention_sm90.cu", attention::prefill_windows,
        "ptx::barrier_expect(k_full, S::TILE_BYTES);" => "ptx::barrier_expect(k_full, S::TILE_BYTES - 2048);";
    sm90_attention_v_bytes, "attention_sm90.cu", attention::prefill_windows,
        "ptx::barrier_expect(v_full, S::TILE_BYTES);" => "ptx::barrier_expect(v_full, S::TILE_BYTES + 2048);";
    sm90_attention_scores_early, "attention_sm90.cu", attention::prefill_windows,
        "ptx::wgmma_wait<1>();" => "ptx::wgmma_wait<2>();";
    sm90_attention_k_freed_early, "attention_sm90.cu", attention::prefill_far,
        "        ptx::wgmma_wait<1>();
        release(&barriers.k_empty[stage.index]);
" => "        release(&barriers.k_empty[stage.index]);
        ptx::wgmma_wait<1>();
";
    sm90_attention_v_freed_early, "attention_sm90.cu", attention::prefill_far,
        "        ptx::wgmma_wait<0>();
        release(&barriers.v_empty[before]);
" => "        release(&barriers.v_empty[before]);
        ptx::wgmma_wait<0>();
";
    sm90_attention_p_overwritten, "attention_sm90.cu", attention::prefill_windows,
        "        ptx::wgmma_wait<0>();
        release(&barriers.v_empty[before]);
" => "        round_p(rounded, s);
        ptx::wgmma_wait<0>();
        release(&barriers.v_empty[before]);
";
    sm90_attention_acc_early, "attention_sm90.cu", attention::prefill_windows,
        "        ptx::wgmma_wait<0>();
        release(&barriers.v_empty[before]);
" => "        ptx::wgmma_wait<1>();
        release(&barriers.v_empty[before]);
";
    sm90_attention_factor, "attention_sm90.cu", attention::prefill_windows,
        "acc[i] *= factor[i / 2 % 2]" => "acc[i] *= factor[i % 2]";
    sm90_attention_slots_of_no_key, "attention_sm90.cu", attention::prefill_windows,
        "valid ? from + (int)i : NOWHERE" => "from + (int)i";
    sm90_attention_piece, "attention_sm90.cu", attention::prefill_windows,
        "i / 4 * PIECE_BYTES + i % 4 * 32" => "i * 32";
    sm90_attention_stride, "attention_sm90.cu", attention::prefill_windows,
        "ptx::matrix_desc(v, PIECE_BYTES, 8 * ROW_BYTES)" => "ptx::matrix_desc(v, 8 * ROW_BYTES, 8 * ROW_BYTES)";
    sm90_attention_table, "attention_sm90.cu", attention::prefill_lengths,
        "p.block_tables[tile.table_start + block]" =>
        "p.block_tables[p.spans[max(p.tiles[2 * blockIdx.y], 1u) - 1].table_start + block]";
    sm90_attention_kv_head, "attention_sm90.cu", attention::prefill_windows,
        "kv_head = head / (p.n_heads / p.n_kv_heads)" => "kv_head = head % p.n_kv_heads";
    sm90_attention_arrivals, "attention_sm90.cu", attention::prefill_far,
        "ptx::barrier_init(&barriers.k_empty[i], warps);" => "ptx::barrier_init(&barriers.k_empty[i], warps - 1);";
    sm90_attention_barrier, "attention_sm90.cu", attention::prefill_windows,
        "ptx::sync_block();" => "";
    sm90_attention_fence, "attention_sm90.cu", attention::prefill_windows,
        "        ptx::wgmma_fence();
        start_scores<HD>(s, q, S::k(stage.index));" => "        start_scores<HD>(s, q, S::k(stage.index));";
}

faults! {
    gemm, SM80:
    gemm_few_barrier, "gemm.cu", gemm::few_and_tiles,
        "    ptx::sync_block();
    for (uint32_t i = threadIdx.x; i < TOKENS * ROWS" => "    for (uint32_t i = threadIdx.x; i < TOKENS * ROWS";
    gemm_few_sum_barrier, "gemm.cu", gemm::few_and_tiles,
        "        *at = total;
    }
    ptx::sync_block();" => "        *at = total;
    }";
    gemm_few_segments, "gemm.cu", gemm::few_and_tiles,
        "for (uint32_t s = 0; s < SEGMENTS; ++s) total" => "for (uint32_t s = 0; s < SEGMENTS - 1; ++s) total";
    gemm_scale_row, "gemm.cu", gemm::few_and_tiles,
        "sum[2] = fmaf(scale_g8, d[2], sum[2]);" => "sum[2] = fmaf(scale_g, d[2], sum[2]);";
    gemm_few_scale_group, "gemm.cu", gemm::few_and_tiles,
        "[tile * 8 + lane / 4]" => "[(tile ^ 1) * 8 + lane / 4]";
    gemm_few_x_fragments, "gemm.cu", gemm::few_and_tiles,
        "b[i][c][j / 2][j % 2] = inside" => "b[i][c][j % 2][j / 2] = inside";
    gemm_few_tail, "gemm.cu", gemm::shapes,
        "token < p.n && group + i < end" => "group + i < end";
    gemm_order_of_sums, "gemm.cu", gemm::few_and_tiles,
        "for (uint32_t s = 0; s < SEGMENTS; ++s) total += at[s * (TOKENS * PITCH)];" =>
        "for (uint32_t s = SEGMENTS; s-- > 0;) total += at[s * (TOKENS * PITCH)];";
    gemm_tile_last_segment, "gemm.cu", gemm::few_and_tiles,
        "while (segment <= SEGMENTS &&" => "while (segment < SEGMENTS &&";
    gemm_tile_wait, "gemm.cu", gemm::few_and_tiles,
        "ptx::cp_async_wait<STAGES - 2>();" => "ptx::cp_async_wait<STAGES - 1>();";
    gemm_tile_barrier, "gemm.cu", gemm::few_and_tiles,
        "ptx::sync_block();  // this stage" => "// this stage";
    gemm_tile_out_barrier, "gemm.cu", gemm::few_and_tiles,
        "    ptx::cp_async_wait<0>();
    ptx::sync_block();" => "    ptx::cp_async_wait<0>();";
    gemm_tile_store_barrier, "gemm.cu", gemm::few_and_tiles,
        "    ptx::sync_block();
    store_tile<MODE, PITCH>(p, out," => "    store_tile<MODE, PITCH>(p, out,";
    gemm_tile_swizzle, "gemm.cu", gemm::few_and_tiles,
        "b + token * 128 + ((piece ^ token % 8) << 4)," => "b + token * 128 + (piece << 4),";
    gemm_tile_x_lanes, "gemm.cu", gemm::few_and_tiles,
        "warp_token + lane % 8 + lane / 16 * 8;" => "warp_token + lane % 8 + lane / 8 % 2 * 8;";
    gemm_tile_x_tail, "gemm.cu", gemm::shapes,
        "const bool inside = first_token + token < p.n;
                const size_t row" => "const bool inside = true;
                const size_t row";
    gemm_int8_scale_group, "gemm.cu", gemm::int8_activations,
        "(b_scales + (group * TOKENS + token) * 4)" => "(b_scales + ((group ^ 1) * TOKENS + token) * 4)";
    gemm_int8_scale_row, "gemm.cu", gemm::int8_activations,
        "to[3] = fmaf((float)d[3], scale_g8 * q_scale.y" => "to[3] = fmaf((float)d[3], scale_g8 * q_scale.x";
    gemm_int8_scale_tail, "gemm.cu", gemm::int8_activations,
        "const bool inside = first_token + token < p.n;
                const float" => "const bool inside = true;
                const float";
    gemm_bf16_fragments, "gemm.cuh", gemm::few_and_tiles,
        "                a[h][2] = words[h].y;
                a[h][1] = words[h].z;" => "                a[h][1] = words[h].y;
                a[h][2] = words[h].z;";
    gemm_int8_sign, "gemm.cuh", gemm::few_and_tiles,
        "(b & 0x00800080) | 0xc300c300" => "(a & 0x00800080) | 0xc300c300";
    gemm_bias_row, "gemm.cuh", gemm::few_and_tiles,
        "p.bias[first_row + row]" => "p.bias[row]";
    gemm_gate_and_up, "gemm.cuh", gemm::functions,
        "silu(value(token, row)) * value(token, row + 8)" => "silu(value(token, row + 8)) * value(token, row)";
    gemm_residual, "gemm.cuh", gemm::shapes,
        "*out = p.epilogue == ADD_F32 ? *out + y : y;" => "*out = y;";
    gemm_out_cols, "gemm.cuh", gemm::few_and_tiles,
        "if (first_row + row >= p.out_cols) continue;" => "";
    gemm_rotated_scale_row, "gemm.cuh", gemm::rotated_int8,
        "p.q_scale[first_token + token]" => "p.q_scale[token]";
}

faults! {
    gemm_sm90, SM90:
    sm90_gemm_bytes, "gemm_sm90.cu", gemm::few_and_tiles,
        "L::B + L::A + L::SCALES + (MODE" => "L::B + L::A + (MODE";
    sm90_gemm_full_parity, "gemm_sm90.cu", gemm::few_and_tiles,
        "index / STAGES % 2);" => "(index / STAGES + 1) % 2);";
    sm90_gemm_empty_parity, "gemm_sm90.cu", gemm::few_and_tiles,
        "(index / STAGES - 1) % 2" => "index / STAGES % 2";
    sm90_gemm_released_early, "gemm_sm90.cu", gemm::few_and_tiles,
        "                ptx::wgmma_wait<0>();
                release(index);
                if" => "                release(index);
                ptx::wgmma_wait<0>();
                if";
    sm90_gemm_rotated_released_early, "gemm_sm90.cu", gemm::rotated_int8,
        "if (index > 0) release(index - 1);" => "release(index);";
    sm90_gemm_rotated_not_waited, "gemm_sm90.cu", gemm::rotated_int8,
        "                if (index + 1 < n_stages) step(odd, even, index + 1);
            }
            ptx::wgmma_wait<0>();" => "                if (index + 1 < n_stages) step(odd, even, index + 1);
            }
            ptx::wgmma_wait<1>();";
    sm90_gemm_int8_not_waited, "gemm_sm90.cu", gemm::int8_activations,
        "else ptx::wgmma_wait<0>();" => "else ptx::wgmma_wait<1>();";
    sm90_gemm_rows_overwritten, "gemm_sm90.cu", gemm::int8_activations,
        "uint32_t(&rows)[4] = a[group % 2];" => "uint32_t(&rows)[4] = a[0];";
    sm90_gemm_int8_one_sum, "gemm_sm90.cu", gemm::int8_activations,
        "ptx::wgmma_s8(d[group % 2], rows," => "ptx::wgmma_s8(d[0], rows,";
    sm90_gemm_fence, "gemm_sm90.cu", gemm::few_and_tiles,
        "index) {
                ptx::wgmma_fence();
#pragma unroll
                for (uint32_t step" => "index) {
#pragma unroll
                for (uint32_t step";
    sm90_gemm_out_barrier, "gemm_sm90.cu", gemm::few_and_tiles,
        "ptx::sync_named(1, CONSUMERS);
        float *out" => "float *out";
    sm90_gemm_store_barrier, "gemm_sm90.cu", gemm::few_and_tiles,
        "        ptx::sync_named(1, CONSUMERS);
        store_tile" => "        store_tile";
    sm90_gemm_init_barrier, "gemm_sm90.cu", gemm::few_and_tiles,
        "    ptx::sync_block();
" => "";
    sm90_gemm_stride, "gemm_sm90.cu", gemm::few_and_tiles,
        "step * 32, 16, 1024)" => "step * 32, 16, 2048)";
    sm90_gemm_arrivals, "gemm_sm90.cu", gemm::few_and_tiles,
        "ptx::barrier_init(empty + i, CONSUMERS / 32);" => "ptx::barrier_init(empty + i, CONSUMERS / 32 - 1);";
    sm90_gemm_release_sync, "gemm_sm90.cu", gemm::int8_activations,
        "            ptx::sync_warp();
            if (lane == 0) ptx::barrier_arrive" => "            if (lane == 0) ptx::barrier_arrive";
    sm90_gemm_scale_tail, "gemm_sm90.cu", gemm::int8_activations,
        "min((uint32_t)TOKENS, (p.n - first_token + 3) / 4 * 4) * 4" => "TOKENS * 4";
    sm90_gemm_scale_row, "gemm.cuh", gemm::few_and_tiles,
        "unpack_int8_scaled(words[0].y, g8, a[0][1], a[0][3]);" => "unpack_int8_scaled(words[0].y, g, a[0][1], a[0][3]);";
    sm90_gemm_offset, "gemm.cuh", gemm::few_and_tiles,
        "-32896.0f * scale" => "-32895.0f * scale";
}

faults! {
    norm, SM80:
    norm_variance, "norm.cu", norm::formulas,
        "squares = fmaf(four.v[i], four.v[i], squares);" =>
        "squares = fmaf(four.v[i] + mean, four.v[i] + mean, squares);";
    norm_sum_barrier, "norm.cu", norm::neighbours,
        "    ptx::sync_block();
    float sum" => "    float sum";
    norm_partials_shared, "norm.cu", norm::neighbours,
        "block_sum(squares, partials + WARPS)" => "block_sum(squares, partials)";
    norm_max_barrier, "norm.cu", norm::neighbours,
        "    ptx::sync_block();
    uint32_t largest" => "    uint32_t largest";
    norm_padding_in_variance, "norm.cu", norm::formulas,
        "column(first_column(position), i) < p.dim ? four.v[i] - mean : 0.0f" => "four.v[i] - mean";
    norm_padding, "norm.cu", norm::magnitudes,
        "y.v[i] = column(first, i) < p.dim ? value : 0.0f;" => "y.v[i] = value;";
    norm_odd_dim, "norm.cu", norm::formulas,
        "x.v[i + 1] = c + 1 < dim ? row[c + 1] : 0.0f;" => "x.v[i + 1] = c < dim ? row[c + 1] : 0.0f;";
    norm_rotation, "norm.cu", norm::rotation,
        "second ? other - x.v[i]" => "second ? x.v[i] - other";
    norm_int8_rounding, "norm.cu", norm::conversions,
        "ptx::round_s8(x.v[i] * factor)" => "(int)(x.v[i] * factor)";
    norm_int8_group, "norm.cu", norm::conversions,
        "mask = 1; mask < 8; mask *= 2" => "mask = 1; mask < 4; mask *= 2";
    norm_int8_stride, "norm.cu", norm::conversions,
        "scale[(size_t)(position / 32) * scale_stride]" => "scale[position / 32]";
    norm_source, "norm.cu", norm::formulas,
        "min(p.source[blockIdx.x], p.n_rows - 1)" => "p.source[blockIdx.x]";
    embed_scale_row, "norm.cu", norm::embedding,
        "at.row % 8 * 2 + at.row / 8]" => "at.row % 8 * 2]";
    embed_token, "norm.cu", norm::embedding,
        "min(token, p.vocab - 1)" => "token";
    embed_bf16_half, "norm.cu", norm::embedding,
        "(at.tile * 2 + at.half) * 32" => "(at.tile + at.half) * 32";
}

faults! {
    rope, SM80:
    rope_pairing, "rope.cu", rope::check,
        ": i + n_pairs;" => ": i + p.head_dim / 2;";
    rope_sign, "rope.cu", rope::check,
        "b * cos + a * sin" => "b * cos - a * sin";
    rope_slot, "rope.cu", rope::check,
        "p.slot_mapping[row]" => "p.slot_mapping[row / 2 * 2]";
    rope_no_slot, "rope.cu", rope::check,
        "if (slot >= p.n_slots) return;" => "";
    rope_norm, "rope.cu", rope::check,
        "is_k ? p.k_norm : nullptr" => "is_k ? p.q_norm : nullptr";
    rope_blocks, "rope.cu", rope::check,
        "(size_t)(slot / BLOCK_KEYS) * p.n_kv_heads + kv_head" => "(size_t)kv_head * (p.n_slots / BLOCK_KEYS) + slot / BLOCK_KEYS";
}

faults! {
    sample, SM80:
    sample_argmax_tie, "sample.cu", sample::odd_values,
        "b.value == a.value && b.index < a.index" => "b.value == a.value && b.index > a.index";
    sample_argmax_barrier, "sample.cu", sample::sizes,
        "    ptx::sync_block();
    best = " => "    best = ";
    sample_argmax_nan, "sample.cu", sample::sizes,
        "if (x[i] > best.value && value > best.value)" => "if (value > best.value)";
    sample_top_k_tie, "sample.cu", sample::sizes,
        "if (n == k) break;" => "if (n <= k) break;";
    sample_minus_zero, "sample.cu", sample::odd_values,
        "x == 0.0f ? 0 : ptx::bits(x)" => "ptx::bits(x)";
    sample_counts_shared, "sample.cu", sample::sizes,
        "shared.counts[bit % 2]" => "shared.counts[0]";
    sample_places_shared, "sample.cu", sample::sizes,
        "    if (lane == 31) shared.counts[3][warp] = upto;
    ptx::sync_block();" => "    if (lane == 31) shared.counts[3][warp] = upto;";
    sample_chosen_barrier, "sample.cu", sample::sizes,
        "        if (keys[i] >= threshold) shared.chosen[at++] = keys[i];
    }
    ptx::sync_block();" => "        if (keys[i] >= threshold) shared.chosen[at++] = keys[i];
    }";
    sample_chunk_factor, "sample.cu", sample::neighbours,
        "block_sum(chunk_sum * factor, shared.sums)" => "block_sum(chunk_sum, shared.sums)";
    sample_chunk_factor_sizes, "sample.cu", sample::sizes,
        "block_sum(chunk_sum * factor, shared.sums)" => "block_sum(chunk_sum, shared.sums)";
    sample_running_sum, "sample.cu", sample::draws,
        "running[1] += ptx::shfl(running[0], 31);" => "";
    sample_edge, "sample.cu", sample::draws,
        "return sum > target;" => "return sum >= target;";
    sample_top_p, "sample.cu", sample::draws,
        "if (s.top_p < 1.0f) last = min(last," => "if (s.top_p < 1.0f) last = min(last + 1,";
}
