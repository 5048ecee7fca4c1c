// A model of how tensor cores add products of bf16, from F. A. Khattak and M. Mikaitis, "Accurate Models of NVIDIA
// Tensor Cores" (arXiv 2512.07004). On random vectors, their models for the A100 and the H100 agree with these in every
// bit. Theirs are for `mma.sync`; we assume that `wgmma` adds in the same way. We have not compared anything here with
// a GPU.
//
// A block of products and the sum so far are added in one step:
//
// - Every term is truncated, towards zero, to a multiple of one quantum. The quantum is 2^(e - 23 - extra bits), where e is
//   the largest exponent among the terms.
// - The truncated terms are added exactly.
// - The sum is truncated to f32.
//
// The exponent of a product is the sum of the exponents of its factors, although the product of their significands may
// be as large as 4.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

namespace tensor_core {

struct Unit {
    int block;       // products that are added at once
    int extra_bits;  // below those of f32
};
constexpr Unit AMPERE = {8, 1}, HOPPER = {16, 2};
constexpr int NO_EXPONENT = -10000;

// The exponent e of x = s * 2^e with 1 <= |s| < 2. Smaller numbers have that of the smallest normal number; 0 has none.
inline int exponent(float x) {
    uint32_t b;
    memcpy(&b, &x, 4);
    const int biased = (int)(b >> 23 & 255);
    if ((b & 0x7fffffffu) == 0) return NO_EXPONENT;
    return biased == 0 ? -126 : biased - 127;
}

// 2^e of a normal double.
inline double power(int e) {
    const uint64_t b = (uint64_t)(e + 1023) << 52;
    double d;
    memcpy(&d, &b, 8);
    return d;
}

// Rounds towards zero, but to infinity past the largest f32.
inline float cut_to_f32(double x) {
    float y = (float)x;
    if (!isinf(y) && fabs((double)y) > fabs(x)) y = nextafterf(y, 0.0f);
    return y;
}

// c + sum over k of a[k] * b[k * stride], k < n, where a and b are bf16.
inline float aligned(Unit unit, const float *a, const float *b, int stride, int n, float c) {
    for (int first = 0; first < n; first += unit.block) {
        const int end = first + unit.block < n ? first + unit.block : n;
        int largest = exponent(c);
        bool finite = isfinite(c);
        float plain = c;
        for (int k = first; k < end; ++k) {
            const float x = a[k], y = b[k * stride];
            const int ex = exponent(x), ey = exponent(y);
            if (ex != NO_EXPONENT && ey != NO_EXPONENT && ex + ey > largest) largest = ex + ey;
            finite = finite && isfinite(x) && isfinite(y);
            plain += x * y;
        }
        // With infinities or NaNs, the order does not matter.
        if (!finite) {
            c = plain;
            continue;
        }
        if (largest == NO_EXPONENT) continue;
        const int quantum = largest - 23 - unit.extra_bits;
        const double scale = power(-quantum);
        int64_t sum = (int64_t)((double)c * scale);
        for (int k = first; k < end; ++k) sum += (int64_t)((double)a[k] * b[k * stride] * scale);
        c = cut_to_f32((double)sum * power(quantum));
    }
    return c;
}

}  // namespace tensor_core

extern "C" __attribute__((visibility("default"))) float emulator_aligned_sum(const float *a, const float *b, uint32_t n,
                                                                             float c, uint32_t has_sm90) {
    return tensor_core::aligned(has_sm90 ? tensor_core::HOPPER : tensor_core::AMPERE, a, b, 1, (int)n, c);
}
