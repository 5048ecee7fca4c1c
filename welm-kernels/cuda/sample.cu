// Logits to tokens: the largest, the k largest with the logarithm of the sum, and a draw among those.
//
//     logits          (n, vocab) f32
//     token           argmax_i l_i
//     log_sum         ln sum_i exp(l_i)
//     draw            w_i = exp((l_i - max l) / temperature) of the top_k largest; of those, the fewest
//                     largest whose weights reach top_p of their sum; of those, in descending order, the
//                     first with which the running sum exceeds uniform * their sum
//
// Of equal logits the lower index comes first, everywhere.
//
// With a soft cap (some models), each logit first becomes l_i = cap * tanh(l_i / cap).
//
// A broken model may give logits that are not finite. top_k returns NaN and +inf as the largest f32, so that the reader
// of the candidates can see them. argmax never takes NaN. A row of only -inf gives token 0.
//
// top_k: a block keeps 8,192 logits in registers and writes the k largest of them. A second kernel chooses the k largest
// of these. So logits are read once, and one row can use up to 128 multiprocessors.
//
// A block finds the k-th largest by binary search, bit by bit. Logit and index are packed into one integer, a key. All
// keys are different, even if logits are equal. So there always is a threshold that exactly k of them reach.
#include <ptx.cuh>

constexpr float LOG2E = 1.44269504f;
constexpr float LARGEST = 3.4028235e38f;   // f32
constexpr uint32_t NO_TOKEN = 0xffffffffu;

DEVICE float minus_infinity() { return ptx::from_bits(0xff800000u); }

// ---- the soft cap ---------------------------------------------------------------------------------------

struct SoftCapParams {
    float *logits;  // (len), in place
    uint64_t len;
    float cap;
    uint32_t reserved;
};

// Block: 1,024 logits, four to a thread.
KERNEL(soft_cap, SoftCapParams, 256, 6) {
    const uint64_t first = (uint64_t)blockIdx.x * 1024 + threadIdx.x;
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
        const uint64_t at = first + i * 256;
        if (at < p.len) p.logits[at] = p.cap * tanhf(p.logits[at] / p.cap);
    }
}

// ---- argmax ---------------------------------------------------------------------------------------------

constexpr uint32_t ARGMAX_THREADS = 1024, ARGMAX_UNROLL = 16;

struct ArgmaxParams {
    const float *logits;  // (n, vocab)
    uint32_t *tokens;     // (n)
    uint32_t vocab, reserved;
};

struct Best {
    float value;
    uint32_t index;
};

// -inf is not a candidate; its index is NO_TOKEN.
DEVICE Best better(Best a, Best b) {
    return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
}

DEVICE Best warp_best(Best best) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
        const Best other = {ptx::shfl_xor(best.value, mask), ptx::shfl_xor(best.index, mask)};
        best = better(best, other);
    }
    return best;
}

// Block: a row. Shared memory: (32) Best.
KERNEL(argmax, ArgmaxParams, 1024, 1) {
    const float *logits = p.logits + (size_t)blockIdx.x * p.vocab;
    Best best = {minus_infinity(), NO_TOKEN};
    for (uint32_t start = 0; start < p.vocab; start += ARGMAX_THREADS * ARGMAX_UNROLL) {
        float x[ARGMAX_UNROLL];
#pragma unroll
        for (uint32_t i = 0; i < ARGMAX_UNROLL; ++i) {
            const uint32_t index = start + i * ARGMAX_THREADS + threadIdx.x;
            x[i] = index < p.vocab ? logits[index] : minus_infinity();
        }
#pragma unroll
        for (uint32_t i = 0; i < ARGMAX_UNROLL; ++i) {
            const float value = fminf(x[i], LARGEST);
            // x[i] is compared as well, because fminf turns NaN into LARGEST.
            if (x[i] > best.value && value > best.value)
                best = {value, start + i * ARGMAX_THREADS + threadIdx.x};
        }
    }
    Best *bests = (Best *)ptx::shared();
    best = warp_best(best);
    if (threadIdx.x % 32 == 0) bests[threadIdx.x / 32] = best;
    ptx::sync_block();
    best = warp_best(bests[threadIdx.x % 32]);
    if (threadIdx.x == 0) p.tokens[blockIdx.x] = best.index == NO_TOKEN ? 0 : best.index;
}

// ---- the k largest --------------------------------------------------------------------------------------

constexpr uint32_t THREADS = 512, WARPS = THREADS / 32, VALUES = 16, CHUNK = THREADS * VALUES, MAX_K = 64;

// A key is 32 bits of logit, then 20 bits of index, stored so that a lower index gives a larger key. The larger of two
// keys comes first. 0 means that there is no key.
constexpr int INDEX_BITS = 20, KEY_BITS = 32 + INDEX_BITS;
constexpr uint32_t LAST_INDEX = (1u << INDEX_BITS) - 1;

// `x` is finite, or -inf for no logit. The bits of floats of one sign compare like integers.
DEVICE uint64_t key_of(float x, uint32_t index) {
    if (x < -LARGEST) return 0;
    const uint32_t b = x == 0.0f ? 0 : ptx::bits(x);  // -0 is 0
    const uint32_t ordered = b >> 31 ? ~b : b | 0x80000000u;
    return (uint64_t)ordered << INDEX_BITS | (LAST_INDEX - index);
}
DEVICE float value_of(uint64_t key) {
    const uint32_t ordered = (uint32_t)(key >> INDEX_BITS);
    return key == 0 ? minus_infinity() : ptx::from_bits(ordered >> 31 ? ordered & 0x7fffffffu : ~ordered);
}
DEVICE uint32_t index_of(uint64_t key) {
    return key == 0 ? NO_TOKEN : LAST_INDEX - ((uint32_t)key & LAST_INDEX);
}

struct Shared {
    uint64_t chosen[MAX_K];
    uint32_t counts[4][WARPS];
    float maxima[WARPS], sums[WARPS];
};

DEVICE float block_max(float x, float *partials) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) x = fmaxf(x, ptx::shfl_xor(x, mask));
    if (threadIdx.x % 32 == 0) partials[threadIdx.x / 32] = x;
    ptx::sync_block();
    for (uint32_t w = 0; w < WARPS; ++w) x = fmaxf(x, partials[w]);
    return x;
}

template <typename T> DEVICE T block_sum(T x, T *partials) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) x += ptx::shfl_xor(x, mask);
    if (threadIdx.x % 32 == 0) partials[threadIdx.x / 32] = x;
    ptx::sync_block();
    T sum = 0;
    for (uint32_t w = 0; w < WARPS; ++w) sum += partials[w];
    return sum;
}

DEVICE uint32_t count_from(const uint64_t (&keys)[VALUES], uint64_t threshold) {
    uint32_t n = 0;
#pragma unroll
    for (uint32_t i = 0; i < VALUES; ++i) n += keys[i] >= threshold;
    return n;
}

// Writes the k largest of the block's keys to shared.chosen, zeros at the end if there are fewer. Their order there is
// always the same, but not sorted. Every thread can read them on return.
DEVICE void choose(const uint64_t (&keys)[VALUES], uint32_t k, Shared &shared) {
    if (threadIdx.x < MAX_K) shared.chosen[threadIdx.x] = 0;
    // Searches for the largest threshold that at least k keys reach, and stops early at one that exactly k reach. If
    // there are no more than k keys, the threshold is 1. `counts` of a round may be overwritten after the barrier of
    // the next round.
    uint64_t threshold = 1;
    if (block_sum(count_from(keys, threshold), shared.counts[2]) > k) {
        threshold = 0;
        for (int bit = KEY_BITS - 1; bit >= 0; --bit) {
            const uint64_t higher = threshold | 1ull << bit;
            const uint32_t n = block_sum(count_from(keys, higher), shared.counts[bit % 2]);
            if (n >= k) threshold = higher;
            if (n == k) break;
        }
    }

    // A key is written after the keys of lower warps, of lower lanes of its warp, and of lower i of its lane.
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t own = count_from(keys, threshold);
    uint32_t upto = own;
#pragma unroll
    for (uint32_t distance = 1; distance < 32; distance *= 2) {
        const uint32_t before = ptx::shfl(upto, (lane - distance) % 32);
        if (lane >= distance) upto += before;
    }
    if (lane == 31) shared.counts[3][warp] = upto;
    ptx::sync_block();
    uint32_t at = upto - own;
    for (uint32_t w = 0; w < warp; ++w) at += shared.counts[3][w];
#pragma unroll
    for (uint32_t i = 0; i < VALUES; ++i) {
        if (keys[i] >= threshold) shared.chosen[at++] = keys[i];
    }
    ptx::sync_block();
}

struct TopKParams {
    const float *logits;  // (n, vocab)
    uint64_t *keys;       // (n, n_chunks, k): the largest of each chunk
    float *maxima;        // (n, n_chunks)
    float *sums;          // (n, n_chunks): of exp(l - maximum of the chunk)
    float *values;        // (n, k), descending; -inf if there is none
    uint32_t *ids;        // (n, k); NO_TOKEN if there is none
    float *log_sums;      // (n)
    uint32_t vocab, n_chunks, k, reserved;
};

// Block (row, chunk of 8,192 logits). Shared memory: Shared, here and below.
KERNEL(top_k_chunks, TopKParams, 512, 1) {
    Shared &shared = *(Shared *)ptx::shared();
    const float *logits = p.logits + (size_t)blockIdx.x * p.vocab;
    const uint32_t first = blockIdx.y * CHUNK + threadIdx.x;
    float x[VALUES];
#pragma unroll
    for (uint32_t i = 0; i < VALUES; ++i) {
        const uint32_t index = first + i * THREADS;
        x[i] = index < p.vocab ? logits[index] : minus_infinity();
    }
    float max = minus_infinity();
#pragma unroll
    for (uint32_t i = 0; i < VALUES; ++i) {
        x[i] = x[i] < -LARGEST ? minus_infinity() : fminf(x[i], LARGEST);  // NaN becomes LARGEST
        max = fmaxf(max, x[i]);
    }
    max = block_max(max, shared.maxima);
    const float base = fmaxf(max, -LARGEST);  // finite, because -inf - -inf is NaN
    float sum = 0.0f;
#pragma unroll
    for (uint32_t i = 0; i < VALUES; ++i) sum += ptx::ex2((x[i] - base) * LOG2E);
    sum = block_sum(sum, shared.sums);

    uint64_t keys[VALUES];
#pragma unroll
    for (uint32_t i = 0; i < VALUES; ++i) keys[i] = key_of(x[i], first + i * THREADS);
    choose(keys, p.k, shared);
    const size_t chunk = (size_t)blockIdx.x * p.n_chunks + blockIdx.y;
    if (threadIdx.x < p.k) p.keys[chunk * p.k + threadIdx.x] = shared.chosen[threadIdx.x];
    if (threadIdx.x == 0) {
        p.maxima[chunk] = max;
        p.sums[chunk] = sum;
    }
}

// Block: a row, whose chunks have left at most CHUNK keys.
KERNEL(top_k_merge, TopKParams, 512, 1) {
    Shared &shared = *(Shared *)ptx::shared();
    const uint32_t row = blockIdx.x, n_keys = p.n_chunks * p.k;
    uint64_t keys[VALUES];
#pragma unroll
    for (uint32_t i = 0; i < VALUES; ++i) {
        const uint32_t at = i * THREADS + threadIdx.x;
        keys[i] = at < n_keys ? p.keys[(size_t)row * n_keys + at] : 0;
    }
    const bool has_chunk = threadIdx.x < p.n_chunks;
    const size_t chunk = (size_t)row * p.n_chunks + threadIdx.x;
    const float chunk_max = has_chunk ? p.maxima[chunk] : minus_infinity();
    const float chunk_sum = has_chunk ? p.sums[chunk] : 0.0f;
    const float max = block_max(chunk_max, shared.maxima);
    const float factor = ptx::ex2((chunk_max - fmaxf(max, -LARGEST)) * LOG2E);
    const float sum = block_sum(chunk_sum * factor, shared.sums);
    if (threadIdx.x == 0) p.log_sums[row] = sum > 0.0f ? max + logf(sum) : minus_infinity();

    choose(keys, p.k, shared);
    if (threadIdx.x >= p.k) return;
    const uint64_t key = shared.chosen[threadIdx.x];
    uint32_t rank = key == 0 ? threadIdx.x : 0;  // zeros are at the end already
    if (key != 0) {
        for (uint32_t i = 0; i < p.k; ++i) rank += shared.chosen[i] > key;
    }
    p.values[(size_t)row * p.k + rank] = value_of(key);
    p.ids[(size_t)row * p.k + rank] = index_of(key);
}

// ---- a draw ---------------------------------------------------------------------------------------------

struct Sampling {
    float temperature;  // 0 takes the largest
    float top_p;        // 1 is off
    uint32_t top_k;     // 0 is off: all k
    float uniform;      // in [0, 1)
};

struct SampleParams {
    const float *values;       // (n, k), descending
    const uint32_t *ids;       // (n, k)
    const Sampling *sampling;  // (n)
    uint32_t *tokens;          // (n)
    uint32_t n_rows, k;
};

DEVICE uint32_t warp_min(uint32_t x) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) x = min(x, ptx::shfl_xor(x, mask));
    return x;
}
DEVICE float warp_running_sum(float x, uint32_t lane) {
#pragma unroll
    for (uint32_t distance = 1; distance < 32; distance *= 2) {
        const float before = ptx::shfl(x, (lane - distance) % 32);
        if (lane >= distance) x += before;
    }
    return x;
}

// Block: 4 rows, a warp each; a lane has the candidates `lane` and `lane + 32`.
KERNEL(sample_top, SampleParams, 128, 8) {
    const uint32_t lane = threadIdx.x % 32, row = blockIdx.x * 4 + threadIdx.x / 32;
    if (row >= p.n_rows) return;
    const Sampling s = p.sampling[row];
    const size_t first = (size_t)row * p.k;
    const float largest = p.values[first];
    const bool greedy = !(s.temperature > 0.0f);
    const uint32_t n = s.top_k == 0 ? p.k : min(s.top_k, p.k);

    float weights[2], running[2];
#pragma unroll
    for (uint32_t h = 0; h < 2; ++h) {
        const uint32_t i = lane + 32 * h;
        const float value = i < n ? p.values[first + i] : minus_infinity();
        weights[h] = value >= -LARGEST ? ptx::ex2((value - largest) / s.temperature * LOG2E) : 0.0f;
        if (greedy) weights[h] = i == 0 ? 1.0f : 0.0f;
        running[h] = warp_running_sum(weights[h], lane);
    }
    running[1] += ptx::shfl(running[0], 31);
    // The weights descend: those that are not 0 come first.
    const uint32_t n_positive = warp_min(!(weights[0] > 0.0f) ? lane : !(weights[1] > 0.0f) ? lane + 32 : 64);

    // The first candidate whose running sum satisfies a condition, 64 for none.
    auto first_where = [&](auto condition) {
        return warp_min(condition(running[0]) ? lane : condition(running[1]) ? lane + 32 : 64);
    };
    const float total = ptx::shfl(running[1], 31), enough = s.top_p * total;
    uint32_t last = max(n_positive, 1u) - 1;
    if (s.top_p < 1.0f) last = min(last, first_where([&](float sum) { return sum >= enough; }));
    const float kept = last < 32 ? ptx::shfl(running[0], last) : ptx::shfl(running[1], last - 32);
    const float target = s.uniform * kept;
    const uint32_t drawn = min(last, first_where([&](float sum) { return sum > target; }));
    if (lane != 0) return;
    const uint32_t id = p.ids[first + drawn];
    p.tokens[row] = id == NO_TOKEN ? 0 : id;
}
