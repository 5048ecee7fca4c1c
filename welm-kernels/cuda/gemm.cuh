// Shared by the matrix products: the layout of packed weights, how they are unpacked, and the epilogue.
//
//     out = f(x W^T + b),    W (rows, cols) bf16, or int8 with one scale for every 32 columns of a row;
//                            or the same as x R (W R)^T, W R int8 with one scale for each row
//
// Weights are the A operand of the tensor cores and are packed as its fragments: one 16-byte load gives a lane its part
// of 16 rows and 32 columns (int8), or of 16 rows and 16 columns (bf16). So weights can go from memory to registers
// directly, or through shared memory without bank conflicts.
//
//     int8            (rows / 16, K / 32, 32 lanes, 16) int8: lane 4 g + t has four words: columns c, c + 1, c + 8,
//                     c + 9, c = 2 t, of row g and of row g + 8, then the same of the second 16 columns;
//                     scales (rows / 16, K / 32, 8, 2) f16: rows g and g + 8 side by side
//     bf16            (rows / 16, K / 32, 2, 32 lanes, 8) bf16: 16 columns at a time, the four of row g, then of g + 8
//     rotated         int8 as above; scales (rows) f32
//
// K is cols rounded up to 128. Rows are rounded up to 128, too. The padding is zero. A "strip" is 16 rows.
//
// R is H / 8 for every 64 columns, where H is the Walsh-Hadamard matrix; R R^T = 1. It spreads a large value in one column
// over 64 columns (arXiv 2404.00456). Then one scale for a row of W R and one for a row of x R are enough, and one int32
// sum runs through all of K, and the loop over K has nothing but int8 products. With a scale for every 32 columns,
// scaling the sums costs more than the products.
#pragma once
#include <ptx.cuh>

namespace gemm {

constexpr uint32_t STRIP = 16, GROUP = 32, TILE_ROWS = 128, STRIPS = TILE_ROWS / STRIP;

// The types of weights and activations. Int8 activations are made by norm.cu. R: weights and activations are rotated.
enum Mode { W8A16, W16A16, W8A8, R8A16, R8A8 };
// Whether weights have a scale for every 32 columns.
template <Mode MODE> constexpr bool GROUP_SCALES = MODE == W8A16 || MODE == W8A8;
template <Mode MODE> constexpr bool INT8_X = MODE == W8A8 || MODE == R8A8;

template <Mode MODE> struct SumOf {
    typedef float Type;
};
template <> struct SumOf<R8A8> {
    typedef int32_t Type;
};

enum Epilogue {
    STORE_BF16,     // out (n, out_stride) bf16
    STORE_F32,      // out (n, out_stride) f32
    ADD_F32,        // the same, added to what is there
    GELU_BF16,      // x (1 + erf(x / sqrt 2)) / 2                                      (arXiv 1606.08415)
    GELU_TANH_BF16, // x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2
    SWIGLU_BF16,    // g / (1 + exp(-g)) u: of 16 rows 8 are gates, 8 are ups           (arXiv 2002.05202)
    GEGLU_BF16,     // gelu_tanh(g) u, likewise
};
// Whether a column of `out` is made of two rows of W, a gate and an up.
template <Epilogue KIND> constexpr bool GATED = KIND == SWIGLU_BF16 || KIND == GEGLU_BF16;

template <Epilogue KIND> struct OutOf {
    typedef uint16_t Type;
};
template <> struct OutOf<STORE_F32> {
    typedef float Type;
};
template <> struct OutOf<ADD_F32> {
    typedef float Type;
};

struct Params {
    const uint16_t *x;        // (n, K) bf16
    const int8_t *q;          // (n, K) int8, columns permuted; W8A8, R8A8
    const float *q_scale;     // (K / 32, q_scale_stride); R8A8: (n)
    const void *w;            // packed
    const void *w_scale;      // f16, packed; R8A16, R8A8: (rows) f32
    const float *bias;        // (rows) or null
    void *out;
    uint32_t n, n_groups;     // n_groups = K / 32
    uint32_t out_cols;        // columns of out that are written
    uint32_t out_stride, q_scale_stride, epilogue;
};

// ---- weights --------------------------------------------------------------------------------------------

// Bytes of 32 columns of a strip.
template <Mode MODE> constexpr uint32_t TILE_BYTES = MODE == W16A16 ? 1024 : 512;
constexpr uint32_t SCALE_BYTES = 32;

// Four int8 as two pairs of bf16, exactly: q = (low 7 bits) - 128 * (sign bit). With 0x43 as the upper byte, the low 7
// bits make the bf16 number 128 + (low 7 bits), and the sign bit alone makes 128 or 256. The difference of the two is q.
// Each mask is one LOP3 instruction with its one constant.
DEVICE void unpack_int8(uint32_t q, uint32_t &low, uint32_t &high) {
    const uint32_t a = ptx::byte_perm(q, 0x43, 0x4140), b = ptx::byte_perm(q, 0x43, 0x4342);
    low = ptx::sub_bf16x2(a & 0xff7fff7f, a & 0xff80ff80);
    high = ptx::sub_bf16x2(b & 0xff7fff7f, b & 0xff80ff80);
}

// The same times a scale, rounded once to bf16. The byte q + 128 in the mantissa of 32768 makes 32768 + (q + 128). A
// scale of f16 has 11 bits, so that all products here are exact.
DEVICE void unpack_int8_scaled(uint32_t q, float scale, uint32_t &low, uint32_t &high) {
    const uint32_t u = q ^ 0x80808080;
    const float offset = -32896.0f * scale;
    float v[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i)
        v[i] = fmaf(ptx::from_bits(ptx::byte_perm(u, 0x47000000, 0x7404 | i << 4)), scale, offset);
    low = ptx::pack_bf16(v[0], v[1]);
    high = ptx::pack_bf16(v[2], v[3]);
}

// A lane's part of 16 rows and 32 columns. `operands` makes the A operands of mma_bf16, one for each 16 columns.
template <Mode MODE> struct Weights {
    uint4 words[MODE == W16A16 ? 2 : 1];
    uint32_t scales;  // f16 of row g, of row g + 8

    DEVICE_MEMBER float scale(int half) const { return ptx::f32_of_f16((uint16_t)(scales >> (16 * half))); }

    DEVICE_MEMBER void operands(uint32_t (&a)[2][4]) const {
        if constexpr (MODE == W16A16) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                a[h][0] = words[h].x;
                a[h][2] = words[h].y;
                a[h][1] = words[h].z;
                a[h][3] = words[h].w;
            }
        } else {
            unpack_int8(words[0].x, a[0][0], a[0][2]);
            unpack_int8(words[0].y, a[0][1], a[0][3]);
            unpack_int8(words[0].z, a[1][0], a[1][2]);
            unpack_int8(words[0].w, a[1][1], a[1][3]);
        }
    }

    // The same times their scales, rounded to bf16.
    DEVICE_MEMBER void scaled_operands(uint32_t (&a)[2][4]) const {
        if constexpr (MODE == W16A16) {
            operands(a);
        } else {
            const float g = scale(0), g8 = scale(1);
            unpack_int8_scaled(words[0].x, g, a[0][0], a[0][2]);
            unpack_int8_scaled(words[0].y, g8, a[0][1], a[0][3]);
            unpack_int8_scaled(words[0].z, g, a[1][0], a[1][2]);
            unpack_int8_scaled(words[0].w, g8, a[1][1], a[1][3]);
        }
    }
};

// ---- epilogue -------------------------------------------------------------------------------------------

DEVICE float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }
DEVICE float gelu_tanh(float x) { return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x))); }
DEVICE float silu(float x) { return x / (1.0f + expf(-x)); }

// A tile of sums in shared memory, (n_tokens, PITCH) f32: `rows` of W from `first_row` on. `threads` threads store it to
// `out`.
struct Tile {
    const float *sums;
    uint32_t rows, first_row, first_token, n_tokens, thread, threads;
};

DEVICE void load_four(float (&to)[4], const float *from) {
    const float4 x = *(const float4 *)from;
    to[0] = x.x;
    to[1] = x.y;
    to[2] = x.z;
    to[3] = x.w;
}

// The first `cols` of four values; all of them in one store if WHOLE.
template <bool WHOLE> DEVICE void store_four(float *out, const float (&y)[4], uint32_t cols) {
    if constexpr (WHOLE) {
        *(float4 *)out = {y[0], y[1], y[2], y[3]};
    } else {
#pragma unroll
        for (uint32_t j = 0; j < 4; ++j) {
            if (j < cols) out[j] = y[j];
        }
    }
}
template <bool WHOLE> DEVICE void store_four(uint16_t *out, const float (&y)[4], uint32_t cols) {
    const uint2 pairs = {ptx::pack_bf16(y[0], y[1]), ptx::pack_bf16(y[2], y[3])};
    if constexpr (WHOLE) {
        *(uint2 *)out = pairs;
    } else {
        *(uint32_t *)out = pairs.x;
        if (cols > 2) *(uint32_t *)(out + 2) = pairs.y;
    }
}

// The epilogue of four neighbouring columns of `out`. They come from four rows of W, or from four gates and four ups if
// the epilogue is gated.
template <Mode MODE, Epilogue KIND> struct Columns {
    static constexpr uint32_t PARTS = GATED<KIND> ? 2 : 1;
    float bias[PARTS][4], w_scale[PARTS][4];

    // Loads bias and scales of rows `row` to `row` + 3; if gated also of the four rows 8 further on, the ups.
    DEVICE_MEMBER Columns(const Params &p, uint32_t row) {
#pragma unroll
        for (uint32_t i = 0; i < PARTS; ++i) {
#pragma unroll
            for (uint32_t j = 0; j < 4; ++j) bias[i][j] = 0.0f;
            if (p.bias) load_four(bias[i], p.bias + row + 8 * i);
            if constexpr (!GROUP_SCALES<MODE> && MODE != W16A16)
                load_four(w_scale[i], (const float *)p.w_scale + row + 8 * i);
        }
    }

    DEVICE_MEMBER void finish(float (&y)[4], const float *sums, float x_scale) const {
        float x[PARTS][4];
#pragma unroll
        for (uint32_t i = 0; i < PARTS; ++i) {
            load_four(x[i], sums + 8 * i);
#pragma unroll
            for (uint32_t j = 0; j < 4; ++j) {
                // An explicit fmaf: the compiler could fuse in one kernel and not in another, and their bits would
                // differ.
                if constexpr (MODE == R8A16) x[i][j] = fmaf(x[i][j], w_scale[i][j], bias[i][j]);
                else if constexpr (MODE == R8A8) x[i][j] = fmaf(x[i][j] * w_scale[i][j], x_scale, bias[i][j]);
                else x[i][j] += bias[i][j];
            }
        }
#pragma unroll
        for (uint32_t j = 0; j < 4; ++j) {
            if constexpr (KIND == SWIGLU_BF16) y[j] = silu(x[0][j]) * x[1][j];
            else if constexpr (KIND == GEGLU_BF16) y[j] = gelu_tanh(x[0][j]) * x[1][j];
            else if constexpr (KIND == GELU_BF16) y[j] = gelu(x[0][j]);
            else if constexpr (KIND == GELU_TANH_BF16) y[j] = gelu_tanh(x[0][j]);
            else y[j] = x[0][j];
        }
    }
};

// A thread stores the same four columns of every `step`-th token from `first` on, so that their bias stays in registers.
// WHOLE: all four columns are inside `out`, and aligned as one vector. Otherwise only the first `cols` of them are
// stored; for bf16 that is an even number.
template <Mode MODE, Epilogue KIND, int PITCH, bool WHOLE>
DEVICE void store_columns(const Params &p, const Tile &tile, uint32_t first, uint32_t step, uint32_t row, uint32_t col,
                          uint32_t cols) {
    constexpr bool ADD = KIND == ADD_F32;
    // Tokens whose loads are issued together. The compiler cannot move a load before an earlier store, so that with one
    // token at a time every load would wait for a store.
    constexpr uint32_t BATCH = !WHOLE ? 1 : ADD ? 8 : KIND == STORE_F32 || KIND == STORE_BF16 ? 4 : 2;
    typedef typename OutOf<KIND>::Type Out;
    const uint32_t n = p.n > tile.first_token ? min(tile.n_tokens, p.n - tile.first_token) : 0;
    const Columns<MODE, KIND> columns(p, tile.first_row + row);
    const size_t pitch = (size_t)step * p.out_stride;
    Out *out = (Out *)p.out + (size_t)(tile.first_token + first) * p.out_stride + col;
    for (uint32_t token = first; token < n; token += BATCH * step, out += BATCH * pitch) {
        float y[BATCH][4], old[BATCH][4] = {}, x_scale[BATCH] = {};
#pragma unroll
        for (uint32_t i = 0; i < BATCH; ++i) {
            if (i * step >= tile.n_tokens || token + i * step >= n) continue;
            if constexpr (MODE == R8A8) x_scale[i] = p.q_scale[tile.first_token + token + i * step];
            if constexpr (ADD && WHOLE) load_four(old[i], out + i * pitch);
            if constexpr (ADD && !WHOLE)
                for (uint32_t j = 0; j < 4; ++j) old[i][j] = j < cols ? out[j] : 0.0f;
        }
        // No check of the last token here: shared memory has sums for all tokens of the tile.
#pragma unroll
        for (uint32_t i = 0; i < BATCH; ++i) {
            if (i * step >= tile.n_tokens) continue;
            columns.finish(y[i], tile.sums + (token + i * step) * PITCH + row, x_scale[i]);
#pragma unroll
            for (uint32_t j = 0; j < 4; ++j) y[i][j] = ADD ? old[i][j] + y[i][j] : y[i][j];
        }
#pragma unroll
        for (uint32_t i = 0; i < BATCH; ++i) {
            if (i * step < tile.n_tokens && token + i * step < n) store_four<WHOLE>(out + i * pitch, y[i], cols);
        }
    }
}

template <Mode MODE, Epilogue KIND, int PITCH> DEVICE void store_tile_as(const Params &p, const Tile &tile) {
    const uint32_t threads_per_token = tile.rows / (GATED<KIND> ? 8 : 4), step = tile.threads / threads_per_token;
    const uint32_t first = tile.thread / threads_per_token, in_tile = tile.thread % threads_per_token * 4;
    const uint32_t row = GATED<KIND> ? in_tile / 8 * 16 + in_tile % 8 : in_tile;
    const uint32_t col = (GATED<KIND> ? tile.first_row / 2 : tile.first_row) + in_tile;
    if (col >= p.out_cols) return;
    const uint32_t cols = min(4u, p.out_cols - col);
    const bool aligned = p.out_stride % 4 == 0;  // p.out begins with a row
    if (cols == 4 && aligned) store_columns<MODE, KIND, PITCH, true>(p, tile, first, step, row, col, cols);
    else store_columns<MODE, KIND, PITCH, false>(p, tile, first, step, row, col, cols);
}

// Stores a tile to `out`. Neighbouring threads write neighbouring columns. Rows of padding give zero, as their bias is zero.
template <Mode MODE, int PITCH>
DEVICE void store_tile(const Params &p, const float *sums, uint32_t rows, uint32_t first_row, uint32_t first_token,
                       uint32_t n_tokens, uint32_t thread, uint32_t threads) {
    const Tile tile = {sums, rows, first_row, first_token, n_tokens, thread, threads};
    switch (p.epilogue) {
        case STORE_BF16: return store_tile_as<MODE, STORE_BF16, PITCH>(p, tile);
        case STORE_F32: return store_tile_as<MODE, STORE_F32, PITCH>(p, tile);
        case ADD_F32: return store_tile_as<MODE, ADD_F32, PITCH>(p, tile);
        case GELU_BF16: return store_tile_as<MODE, GELU_BF16, PITCH>(p, tile);
        case GELU_TANH_BF16: return store_tile_as<MODE, GELU_TANH_BF16, PITCH>(p, tile);
        case SWIGLU_BF16: return store_tile_as<MODE, SWIGLU_BF16, PITCH>(p, tile);
        case GEGLU_BF16: return store_tile_as<MODE, GEGLU_BF16, PITCH>(p, tile);
    }
}

}  // namespace gemm
