// What the matrix products have in common: packed weights, their way into registers, and the epilogue.
//
//     out = f(x W^T + b),    W (rows, cols) int8 with a scale for 32 columns of a row, or bf16;
//                            or x R (W R)^T, the same, W R int8 with one scale for a row
//
// Weights are the A operand of the tensor cores and are packed as its fragments: one 16-byte load gives a lane
// what it holds of 16 rows and 32 columns (int8; 16 columns of bf16). So a weight goes from memory to registers
// without shared memory between, or through it without bank conflicts, and is read once however many rows x has.
//
//     int8            (rows / 16, K / 32, 32 lanes, 16) int8: lane 4 g + t has four words: columns c, c + 1, c + 8,
//                     c + 9, c = 2 t, of row g and of row g + 8, then the same of the second 16 columns;
//                     scales (rows / 16, K / 32, 8, 2) f16: rows g and g + 8 side by side
//     bf16            (rows / 16, K / 32, 2, 32 lanes, 8) bf16: 16 columns at a time, the four of row g, then of g + 8
//     rotated         int8 as above; scales (rows) f32
//
// K is cols rounded up to 128, rows are rounded up to 128; what is added is zero. "Strip": 16 rows.
//
// R is H / 8 for every 64 columns, H the Walsh-Hadamard matrix; R R^T = 1. It spreads what is large in one column over
// 64 (arXiv 2404.00456), so that one scale for a row of W R and one for a row of x R do, and int32 sums run through
// all of K: int8 tensor cores then have nothing else to wait for. With a scale for 32 columns, scaling the sums costs
// more than the products.
#pragma once
#include <ptx.cuh>

namespace gemm {

constexpr uint32_t STRIP = 16, GROUP = 32, TILE_ROWS = 128, STRIPS = TILE_ROWS / STRIP;

// What a product is made of. Activations are bf16, or int8 as norm.cu makes them; R: weights and activations are
// rotated.
enum Mode { W8A16, W16A16, W8A8, R8A16, R8A8 };
// Weights have a scale for 32 columns.
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

// Bytes of a strip's 32 columns.
template <Mode MODE> constexpr uint32_t TILE_BYTES = MODE == W16A16 ? 1024 : 512;
constexpr uint32_t SCALE_BYTES = 32;

// Four int8 as two pairs of bf16, exactly: q = (low 7 bits) - 128 * (sign bit). 0x4300 is 128, and 128 + the low 7
// bits; 0xc300 is -128, and -256 with the sign bit.
DEVICE void unpack_int8(uint32_t q, uint32_t &low, uint32_t &high) {
    const uint32_t a = ptx::byte_perm(q, 0, 0x4140), b = ptx::byte_perm(q, 0, 0x4342);
    low = ptx::add_bf16x2((a & 0x007f007f) | 0x43004300, (a & 0x00800080) | 0xc300c300);
    high = ptx::add_bf16x2((b & 0x007f007f) | 0x43004300, (b & 0x00800080) | 0xc300c300);
}

// The same times a scale, rounded once to bf16. The byte q + 128 in the middle of 32768 makes 32768 + (q + 128); a
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

// A lane's part of 16 rows and 32 columns: A operands of mma_bf16 for each 16 columns.
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

    // With the scales in them, rounded to bf16.
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

// A tile of sums in shared memory, (n_tokens, PITCH) f32, `rows` of W from `first_row` on, to `out`, by `threads`
// threads. Neighbouring threads write neighbouring columns. Rows of padding give what their bias gives: zero.
template <Mode MODE, int PITCH>
DEVICE void store_tile(const Params &p, const float *tile, uint32_t rows, uint32_t first_row, uint32_t first_token,
                       uint32_t n_tokens, uint32_t thread, uint32_t threads) {
    const uint32_t n = p.n > first_token ? min(n_tokens, p.n - first_token) : 0;
    auto value = [&](uint32_t token, uint32_t row) {
        const float sum = tile[token * PITCH + row], bias = p.bias ? p.bias[first_row + row] : 0.0f;
        // fmaf: the compiler must not choose, or two kernels could differ.
        if constexpr (MODE == R8A16) return fmaf(sum, ((const float *)p.w_scale)[first_row + row], bias);
        if constexpr (MODE == R8A8)
            return fmaf(sum * ((const float *)p.w_scale)[first_row + row], p.q_scale[first_token + token], bias);
        return sum + bias;
    };
    if (p.epilogue == STORE_F32 || p.epilogue == ADD_F32) {
        for (uint32_t i = thread; i < n * rows; i += threads) {
            const uint32_t token = i / rows, row = i % rows;
            if (first_row + row >= p.out_cols) continue;
            float *out = (float *)p.out + (size_t)(first_token + token) * p.out_stride + first_row + row;
            const float y = value(token, row);
            *out = p.epilogue == ADD_F32 ? *out + y : y;
        }
        return;
    }
    // Two columns a thread; out_cols is even.
    const bool gated = p.epilogue == SWIGLU_BF16;
    const uint32_t cols = gated ? rows / 2 : rows, first_col = gated ? first_row / 2 : first_row;
    for (uint32_t i = thread; i < n * (cols / 2); i += threads) {
        const uint32_t token = i / (cols / 2), col = i % (cols / 2) * 2;
        if (first_col + col >= p.out_cols) continue;
        float y[2];
#pragma unroll
        for (uint32_t j = 0; j < 2; ++j) {
            if (gated) {
                const uint32_t row = (col + j) / 8 * 16 + (col + j) % 8;
                y[j] = silu(value(token, row)) * value(token, row + 8);
            } else {
                const float x = value(token, col + j);
                y[j] = p.epilogue == GELU_BF16 ? gelu(x) : p.epilogue == GELU_TANH_BF16 ? gelu_tanh(x) : x;
            }
        }
        uint16_t *out = (uint16_t *)p.out + (size_t)(first_token + token) * p.out_stride + first_col + col;
        *(uint32_t *)out = ptx::pack_bf16(y[0], y[1]);
    }
}

}  // namespace gemm
