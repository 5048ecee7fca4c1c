// Rotary position embedding (arXiv 2104.09864) of q and k, and the write of k and v to the paged cache.
//
//     (a, b) -> (a cos - b sin, b cos + a sin),     cos and sin of pair i of the row, i < n = rotary_dim / 2
//     half-split:  a = x[i],  b = x[i + n]          interleaved:  a = x[2 i],  b = x[2 i + 1]
//
// Columns of a head from rotary_dim on are not rotated. If q or k has norm weights (Qwen3), each head is first
// normalised: x / sqrt(mean(x^2) + eps) * w. All arithmetic is f32.
//
//     qkv             (n, stride) bf16: n_heads heads of q, n_kv_heads of k, n_kv_heads of v, head_dim each.
//                     q is rotated in place; k and v are left as they are
//     k, v            (n_blocks, n_kv_heads, 16, head_dim) bf16; a row goes to slot block * 16 + offset
//     cos, sin        (n, rotary_dim / 2) f32
//
// A warp computes one head of a row, lane l the pairs l, l + 32, ... Loads and stores are only 2 bytes wide, because
// this is a small part of a layer's memory traffic.
#include <ptx.cuh>

constexpr uint32_t WARPS = 4, BLOCK_KEYS = 16;

struct RopeParams {
    uint16_t *qkv, *k, *v;
    const float *cos, *sin;
    const uint32_t *slot_mapping;   // (n); a slot outside the cache: k and v are not written
    const float *q_norm, *k_norm;   // (head_dim) or null
    uint32_t stride, n_heads, n_kv_heads, head_dim;
    uint32_t n_pairs, n_slots, interleaved;
    float eps;
};

// Block (row, 4 heads).
KERNEL(rope_and_cache, RopeParams, 128, 8) {
    const uint32_t row = blockIdx.x, lane = threadIdx.x % 32;
    const uint32_t head = blockIdx.y * WARPS + threadIdx.x / 32;
    if (head >= p.n_heads + 2 * p.n_kv_heads) return;
    uint16_t *from = p.qkv + (size_t)row * p.stride + (size_t)head * p.head_dim, *to = from;
    const float *weight = p.q_norm;
    uint32_t n_pairs = p.n_pairs;
    if (head >= p.n_heads) {
        const uint32_t slot = p.slot_mapping[row];
        if (slot >= p.n_slots) return;
        const bool is_k = head < p.n_heads + p.n_kv_heads;
        const uint32_t kv_head = (head - p.n_heads) % p.n_kv_heads;
        const size_t block = (size_t)(slot / BLOCK_KEYS) * p.n_kv_heads + kv_head;
        to = (is_k ? p.k : p.v) + (block * BLOCK_KEYS + slot % BLOCK_KEYS) * p.head_dim;
        weight = is_k ? p.k_norm : nullptr;
        n_pairs = is_k ? p.n_pairs : 0;
    }

    float inverse = 1.0f;
    if (weight) {
        float squares = 0.0f;
        for (uint32_t c = lane; c < p.head_dim; c += 32) {
            const float x = ptx::f32_of_bf16(from[c]);
            squares = fmaf(x, x, squares);
        }
#pragma unroll
        for (int mask = 16; mask > 0; mask /= 2) squares += ptx::shfl_xor(squares, mask);
        inverse = 1.0f / sqrtf(squares / (float)p.head_dim + p.eps);
    }
    auto value = [&](uint32_t c) {
        const float x = ptx::f32_of_bf16(from[c]);
        return weight ? x * inverse * weight[c] : x;
    };

    const size_t angles = (size_t)row * p.n_pairs;
    for (uint32_t i = lane; i < n_pairs; i += 32) {
        const uint32_t ia = p.interleaved ? 2 * i : i, ib = p.interleaved ? 2 * i + 1 : i + n_pairs;
        const float a = value(ia), b = value(ib), cos = p.cos[angles + i], sin = p.sin[angles + i];
        to[ia] = ptx::bf16_of_f32(a * cos - b * sin);
        to[ib] = ptx::bf16_of_f32(b * cos + a * sin);
    }
    for (uint32_t c = 2 * n_pairs + lane; c < p.head_dim; c += 32) to[c] = ptx::bf16_of_f32(value(c));
}
